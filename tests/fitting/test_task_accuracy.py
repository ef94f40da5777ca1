"""Forecasts of task accuracy: the fits against scipy, the intervals, the checks, the inputs and the commands."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from flops_fit_core import FitError
from flops_fit_core.cli.main import run as command_line
from flops_fit_core.fitting import (
    TaskScores,
    fit_task,
    load_task_fit,
    predict_accuracy,
    scores_of_results,
    scores_of_table,
    write_fit,
)
from flops_fit_core.fitting.task_accuracy.curves import ComputeCurve, LossCurve, measure_weights
from flops_fit_core.fitting.task_accuracy.loss_law import LossFit
from flops_fit_core.testing.examples import example_result, example_run

OLMO = Path(__file__).parents[3] / "shared" / "data" / "olmo_ladder_tasks.csv"


def make_scores(seed=0, questions=2000, slope=7.0, noise=0.003, floor=0.25):
    """4 sizes by 5 D / N; the loss and the accuracy follow known laws."""
    random = np.random.default_rng(seed)
    params, ratio = (axis.ravel() for axis in np.meshgrid(np.geomspace(1.5e8, 1.2e9, 4), [10, 20, 40, 100, 200]))
    tokens = params * ratio
    loss = 0.5 + 250 / params**0.32 + 400 / tokens**0.3
    accuracy = floor + (1 - floor) / (1 + np.exp(slope * (loss - 0.9)))
    loss = loss * np.exp(noise * random.standard_normal(20))
    accuracy = accuracy + np.sqrt(accuracy * (1 - accuracy) / questions) * random.standard_normal(20)
    ids = tuple(f"run {number}" for number in range(20))
    return TaskScores("acc", "bpb", ids, params, tokens, 6 * params * tokens, loss, accuracy, ids, loss)


def true_accuracy(params, tokens):
    loss = 0.5 + 250 / params**0.32 + 400 / tokens**0.3
    return 0.25 + 0.75 / (1 + np.exp(7 * (loss - 0.9)))


def write_table(path, scores, **columns):
    header = ["params", "tokens", "loss", "arc_acc", "arc_bpb", *columns]
    values = [scores.params, scores.tokens, 2 * scores.loss, scores.accuracy, scores.loss, *columns.values()]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(zip(*values, strict=True))
    return path


# ---------------------------------------------------------------------------- the three parts


def fit_compute_curve(scores):
    ln_ratio = np.log(scores.params / scores.tokens)
    return ComputeCurve.fit(np.log(scores.flops), ln_ratio, scores.accuracy, 0.25, 1.0)


def test_derivatives_agree_with_differences():
    scores = make_scores()
    curves = LossCurve.fit(scores.loss, scores.accuracy, None, 1.0), fit_compute_curve(scores)
    for curve in curves:
        theta, problem = curve.result.theta, curve.problem
        for row in (0, 7, 19):
            difference = approx_fprime(theta, lambda at, row=row, p=problem: p.predict(at[None])[0, row], 1e-7)
            assert problem.jacobian(theta[None])[0, :, row] == pytest.approx(difference, rel=2e-5, abs=2e-7)


def test_no_start_of_scipy_finds_a_better_fit_of_step_2():
    scores = make_scores(seed=3)
    curve = LossCurve.fit(scores.loss, scores.accuracy, 0.25, 1.0)
    x, y = np.append(scores.loss, 0.0), np.append(scores.accuracy, 1.0)
    weights = np.append(measure_weights(scores.accuracy), 1.0)
    # The prior of the floor, with the variance of the noise of the fit without it.
    stiffness = curve.problem.stiffness[0]
    noise = np.sqrt((weights * curve.result.residuals**2).sum() / 18)
    assert stiffness == pytest.approx((noise / 0.03) ** 2, rel=0.05)

    def objective(theta):
        floor, ln_slope, midpoint = theta
        fitted = floor + (1 - floor) / (1 + np.exp(np.exp(ln_slope) * (x - midpoint)))
        return (weights * (y - fitted) ** 2).sum() + stiffness * (floor - 0.25) ** 2

    random = np.random.default_rng(0)
    starts = np.stack([random.uniform(0.1, 0.3, 20), random.uniform(1, 3, 20), random.uniform(0.6, 1.1, 20)], 1)
    best = min(minimize(objective, start, method="Nelder-Mead", options={"maxiter": 4000}).fun for start in starts)
    assert objective(curve.result.theta) <= best * (1 + 1e-9)


def test_no_start_of_scipy_finds_a_better_loss_law():
    scores = make_scores(seed=4)
    law = LossFit.fit(scores.params, scores.tokens, scores.loss)
    u, v = (np.log(values) - np.log(values).mean() for values in (scores.params, scores.tokens))
    weights, stiffness = law.problem.weights, law.problem.stiffness[2]
    noise = np.sqrt((weights * law.result.residuals**2).sum() / 15)
    assert stiffness == pytest.approx((noise / 0.5) ** 2, rel=0.05)

    def objective(theta):
        irreducible, ln_a, ln_alpha, ln_b, ln_beta = theta
        fitted = np.log(irreducible + np.exp(ln_a - np.exp(ln_alpha) * u) + np.exp(ln_b - np.exp(ln_beta) * v))
        penalty = stiffness * ((theta[[2, 4]] - np.log(0.35)) ** 2).sum()
        return 1e6 * ((weights * (np.log(scores.loss) - fitted) ** 2).sum() + penalty)

    with np.errstate(all="ignore"):
        best = min(
            minimize(objective, law.result.theta + shift, method="BFGS", options={"gtol": 1e-9}).fun
            for shift in np.random.default_rng(0).normal(0, [0.1, 0.4, 0.4, 0.4, 0.4], (20, 5))
        )
    assert objective(law.result.theta) <= best * (1 + 1e-4)


def loss_at(law, params, tokens):
    point = {name: value[0] for name, value in law.point.items()}
    return point["E"] + point["A"] / params ** point["alpha"] + point["B"] / tokens ** point["beta"]


def test_an_outlier_of_the_loss_hardly_moves_the_loss_law():
    scores = make_scores(seed=1)
    spoiled = scores.loss.copy()
    spoiled[7] *= 1.3
    clean = loss_at(LossFit.fit(scores.params, scores.tokens, scores.loss), 4e9, 8e10)
    assert loss_at(LossFit.fit(scores.params, scores.tokens, spoiled), 4e9, 8e10) == pytest.approx(clean, rel=0.02)


def test_exponents_without_information_take_their_prior():
    params = np.geomspace(1e8, 1e9, 10)
    loss = 1 + 300 / params**0.3
    point = LossFit.fit(params, 20 * params, loss).point  # N and D are proportional
    assert 0.1 < point["alpha"] < 1.0
    assert 0.1 < point["beta"] < 1.0


# ---------------------------------------------------------------------------- forecasts and intervals


def test_a_forecast_beyond_the_runs_is_close_to_the_truth():
    fit = fit_task(make_scores(questions=20_000), chance=0.25)
    forecast = predict_accuracy(fit, params=4e9, tokens=8e10)
    assert fit.is_forecastable
    assert forecast.two_step.value == pytest.approx(true_accuracy(4e9, 8e10), abs=0.02)
    assert forecast.accuracy.value == pytest.approx(true_accuracy(4e9, 8e10), abs=0.04)
    assert forecast.accuracy.value == pytest.approx((forecast.two_step.value + forecast.direct.value) / 2)
    assert forecast.new_run.low <= forecast.accuracy.low < forecast.accuracy.value
    assert forecast.accuracy.value < forecast.accuracy.high <= forecast.new_run.high
    assert forecast.new_run.high - forecast.new_run.low > forecast.accuracy.high - forecast.accuracy.low


@pytest.mark.slow
def test_intervals_of_new_runs_cover_at_their_level():
    inside = []
    for seed in range(60):
        fit = fit_task(make_scores(seed, questions=1000), chance=0.25, questions=1000, draws=200)
        forecast = predict_accuracy(fit, params=1.2e9, tokens=6e10)
        truth = true_accuracy(1.2e9, 6e10)
        measured = truth + np.sqrt(truth * (1 - truth) / 1000) * np.random.default_rng(1000 + seed).normal()
        inside.append(forecast.new_run.low <= measured <= forecast.new_run.high)
    assert 0.8 <= np.mean(inside) <= 1.0


def test_a_budget_uses_the_optimum_of_the_main_loss():
    scores = make_scores()
    fit = fit_task(replace(scores, main_loss=2.0 + 300 / scores.params**0.3 + 300 / scores.tokens**0.3))
    forecast = predict_accuracy(fit, 1e22)
    assert forecast.params == pytest.approx(forecast.tokens, rel=0.1)  # equal A, B, alpha, beta
    assert 6 * forecast.params * forecast.tokens == pytest.approx(1e22, rel=1e-6)
    at_size = predict_accuracy(fit, 1e22, params=forecast.params)
    assert at_size.accuracy.value == pytest.approx(forecast.accuracy.value, rel=1e-6)


def test_stated_questions_hold_the_noise_of_few_runs():
    scores = make_scores(questions=200)
    curve = LossCurve.fit(scores.loss, scores.accuracy, None, 1.0)
    smooth = replace(scores, accuracy=curve.fitted)
    free = fit_task(smooth, draws=0)
    stated = fit_task(smooth, draws=0, questions=200)
    assert free.noise < 1e-2
    assert stated.noise == pytest.approx(np.sqrt(4 / 200 / 19), rel=0.1)


def test_points_of_one_training_run_count_together():
    scores = make_scores()
    single = fit_task(scores)
    pairs = fit_task(replace(scores, trajectories=tuple(str(number // 5) for number in range(20))))
    at = {"params": 4e9, "tokens": 8e10}
    assert predict_accuracy(pairs, **at).accuracy.value == predict_accuracy(single, **at).accuracy.value
    assert predict_accuracy(pairs, **at).accuracy.low != predict_accuracy(single, **at).accuracy.low


def test_a_saved_fit_gives_the_same_forecast(tmp_path):
    fit = fit_task(make_scores(), chance=0.25)
    write_fit(fit, tmp_path / "acc.json")
    assert load_task_fit(tmp_path / "acc.json") == fit
    (tmp_path / "acc.json").write_text((tmp_path / "acc.json").read_text().replace('"noise": ', '"noise": 1'))
    with pytest.raises(FitError, match="not a fit of a task, or is damaged"):
        load_task_fit(tmp_path / "acc.json")


@pytest.mark.parametrize("arguments", [{}, {"params": 1e9}, {"tokens": 1e9}, {"flops": 1e20, "tokens": 1e9}])
def test_a_forecast_needs_n_and_d_or_c(arguments):
    with pytest.raises(FitError, match="params and tokens, params and flops, or flops"):
        predict_accuracy(fit_task(make_scores(), draws=0), **arguments)


# ---------------------------------------------------------------------------- tasks that cannot be forecast


def codes(fit):
    return {item.code for item in fit.diagnostics if item.severity == "warning"}


def test_a_task_at_chance_is_identified():
    scores = make_scores(slope=0.0)
    guesses = 0.25 + 0.01 * np.random.default_rng(5).standard_normal(20)
    fit = fit_task(replace(scores, accuracy=guesses), chance=0.25)
    assert not fit.is_forecastable
    assert {"task-no-trend", "task-within-noise", "task-chance"} <= codes(fit)


def test_a_task_that_rises_from_chance_is_not_identified():
    assert codes(fit_task(make_scores(questions=20_000), chance=0.25)) == set()


def test_an_accuracy_without_relation_to_the_loss_is_identified():
    scores = make_scores()
    shuffled = np.random.default_rng(2).permutation(scores.accuracy)
    fit = fit_task(replace(scores, accuracy=shuffled))
    assert "task-no-trend" in codes(fit)
    message = next(item.message for item in fit.diagnostics if item.code == "task-no-trend")
    assert "no monotone relation with bpb in these 20 runs" in message


def test_a_slope_that_the_runs_do_not_determine_is_identified():
    scores = make_scores()
    noisy = np.clip(scores.accuracy.mean() + 0.05 * np.random.default_rng(8).standard_normal(20), 0, 1)
    assert "task-unidentified" in codes(fit_task(replace(scores, accuracy=noisy)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": np.full(20, 0.5)}, "acc is 0.5 in every run"),
        ({"accuracy": np.linspace(0, 40, 20)}, "acc must lie between 0 and 1"),
        ({"params": np.full(20, 1e9)}, r"N is 1e\+09 in every run"),
        ({"loss": np.full(20, 0.7)}, r"bpb is 0\.7 in every run"),
    ],
)
def test_runs_that_do_not_vary_are_refused(change, message):
    with pytest.raises(FitError, match=message):
        fit_task(replace(make_scores(), **change))


def test_few_runs_are_refused():
    with pytest.raises(FitError, match="7 runs with acc and bpb cannot fit the accuracy of a task"):
        fit_task(make_scores().take(np.arange(7)))


# ---------------------------------------------------------------------------- tables and studies


def test_the_bits_per_byte_of_the_task_are_found_by_name(tmp_path):
    scores = make_scores()
    table = scores_of_table(write_table(tmp_path / "runs.csv", scores), "ARC_acc")
    assert (table.scores.task, table.scores.via) == ("arc_acc", "arc_bpb")
    assert table.scores.loss == pytest.approx(scores.loss)
    assert table.scores.main_loss == pytest.approx(2 * scores.loss)
    main = scores_of_table(tmp_path / "runs.csv", "arc_acc", "loss")
    assert main.scores.loss == pytest.approx(2 * scores.loss)


def test_percent_are_read_with_a_note(tmp_path):
    scores = make_scores()
    path = write_table(tmp_path / "runs.csv", scores, pct=[f"{100 * value:.4f} %" for value in scores.accuracy])
    table = scores_of_table(path, "pct", "arc_bpb")
    assert table.scores.accuracy == pytest.approx(scores.accuracy, abs=1e-6)
    assert "read as percent" in table.diagnostics[-1].message


def test_rows_without_an_accuracy_are_left_out_with_a_reason(tmp_path):
    scores = make_scores()
    cells = [*scores.accuracy[:18], "", "n/a"]
    table = scores_of_table(write_table(tmp_path / "runs.csv", scores, acc=cells), "acc", "arc_bpb")
    assert len(table.scores) == 18
    assert table.excluded == {"row 20": "acc is missing", "row 21": "acc is missing"}


def test_a_table_with_a_task_loss_only_needs_no_other_loss(tmp_path):
    scores = make_scores()
    path = tmp_path / "runs.csv"
    rows = zip(scores.params, scores.tokens, scores.accuracy, scores.loss, strict=True)
    path.write_text("params,tokens,arc_acc,arc_bpb\n" + "\n".join(",".join(map(str, row)) for row in rows))
    assert scores_of_table(path, "arc_acc").scores.main_loss == pytest.approx(scores.loss)


def test_a_column_that_does_not_exist_is_named_with_the_nearest(tmp_path):
    path = write_table(tmp_path / "runs.csv", make_scores())
    with pytest.raises(FitError, match=r"no column 'arc_ac'; did you mean 'arc_acc'\? It has: params"):
        scores_of_table(path, "arc_ac")


def test_metrics_of_a_study_are_scores():
    scores = make_scores()
    results = [
        example_result(
            run=example_run(seed=number, params=round(scores.params[number]), tokens=round(scores.tokens[number])),
            metrics={"arc/acc": scores.accuracy[number], "arc/bpb": scores.loss[number]},
        )
        for number in range(20)
    ]
    table = scores_of_results(results, "arc/acc")
    assert table.scores.via == "arc/bpb"
    assert table.scores.accuracy == pytest.approx(scores.accuracy)
    assert table.scores.tokens == pytest.approx(np.round(scores.tokens))
    assert set(scores_of_results(results, "arc/acc", "loss").scores.loss) == {results[0].loss}
    with pytest.raises(FitError, match="no completed run has the metric 'arc/f1'"):
        scores_of_results(results, "arc/f1")


# ---------------------------------------------------------------------------- commands


def test_fit_prints_checks_before_the_forecast(tmp_path, capsys):
    scores = make_scores(slope=0.0)
    path = write_table(tmp_path / "runs.csv", replace(scores, accuracy=0.25 + 1e-3 * scores.loss))
    assert command_line(["fit", str(path), "--task", "arc_acc", "--chance", "0.25"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("no monotone relation") < printed.index("Forecast of arc_acc")


def test_a_saved_fit_of_a_task_predicts(tmp_path, capsys):
    path = write_table(tmp_path / "runs.csv", make_scores())
    saved = str(tmp_path / "arc.json")
    assert command_line(["fit", str(path), "--task", "arc_acc", "--out", saved]) == 0
    assert "Step 2: accuracy = floor + (1 - floor)" in capsys.readouterr().out
    assert command_line(["predict", saved, "--params", "4e9", "--tokens", "8e10", "--json"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    assert forecast["accuracy"]["value"] == pytest.approx(true_accuracy(4e9, 8e10), abs=0.05)
    assert command_line(["predict", str(path), "--task", "arc_acc", "--flops", "1e22", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flops"] == 1e22


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--via", "arc_bpb"], "--via: add --task COLUMN"),
        (["fit", "--task", "arc_acc", "--fitter", "isoflop"], "--fitter cannot be combined with --task"),
        (["fit", "--task", "arc_acc", "--checklist"], "--checklist cannot be combined with --task"),
        (["predict"], "no budget: write --flops"),
        (["predict", "--tokens", "1e9"], "--tokens D needs --params N"),
        (["predict", "--task", "arc_acc"], "--params N --tokens D, or for --flops C"),
    ],
)
def test_options_that_cannot_be_combined_are_refused(tmp_path, capsys, arguments, message):
    path = write_table(tmp_path / "runs.csv", make_scores())
    assert command_line([arguments[0], str(path), *arguments[1:]]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not OLMO.exists(), reason="the table of the OLMo ladder is not here")
def test_the_olmo_ladder_is_fitted_and_its_noisy_task_is_identified():
    scores = scores_of_table(OLMO, "hellaswag_val_acc", columns={"loss": "loss"}).scores
    fit = fit_task(scores.take(scores.params < 9e8), chance=0.25)
    assert fit.is_forecastable
    target = scores.take((scores.params > 9e8) & (scores.params < 2e9))
    for n, d, measured in zip(target.params, target.tokens, target.accuracy, strict=True):
        assert predict_accuracy(fit, params=n, tokens=d).accuracy.value == pytest.approx(measured, rel=0.05)
    boolq = scores_of_table(OLMO, "boolq_val_acc", columns={"loss": "loss"}).scores
    assert not fit_task(boolq.take(boolq.params < 9e8), chance=0.5).is_forecastable
