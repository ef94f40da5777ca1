"""The law of learning rate and batch, on grids with a known optimum and in the forms of other people's tables."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import least_squares
from typer.testing import CliRunner

from flops_fit_core import ConfigError, FitError
from flops_fit_core.cli import app
from flops_fit_core.config import load_experiment
from flops_fit_core.fitting import LrBatchFit, fit_lr_batch, read_lr_batch_table, recipe_table
from flops_fit_core.fitting.hyperparameters.regret import regret
from flops_fit_core.fitting.hyperparameters.surface import GridRuns, _evaluate, fit_surface, polynomial_powers
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed

STEPLAW = Path(__file__).parents[3] / "shared" / "data" / "steplaw_dense_grid.csv"
SIZES, LENGTHS = (1e8, 4e8, 1.6e9), (10, 40, 160)
"""N, and D / N."""
LR = {"scale": 40.0, "params": -0.7, "tokens": 0.2}
BATCH = {"scale": 20.0, "params": -0.2, "tokens": 0.6}
SEQUENCE = 2048


def best(law, params, tokens):
    return law["scale"] * params ** law["params"] * tokens ** law["tokens"]


def loss_of(params, tokens, lr, batch, skew=0.0):
    """A quadratic bowl in the logs, with a cubic term in ln lr; its minimum is at the laws."""
    u, v = math.log(lr / best(LR, params, tokens)), math.log(batch / best(BATCH, params, tokens))
    bowl = 0.007 * u * u - 0.006 * u * v + 0.006 * v * v + skew * u**3
    return (1.7 + 400 / params**0.34 + 400 / tokens**0.28) * math.exp(bowl)


def grid_rows(*, sizes=SIZES, lengths=LENGTHS, shift=0, skew=0.0, rates=6, batches=5, noise=0.0):
    """Rows of a grid on powers of 2: N, D, lr, batch in sequences, loss. ``shift``: octaves off the optimum."""
    random = np.random.default_rng(0)
    rows = []
    for number, (params, length) in enumerate(itertools.product(sizes, lengths)):
        tokens = params * length
        middle_lr = round(math.log2(best(LR, params, tokens))) + shift * (-1) ** number
        middle_batch = round(math.log2(best(BATCH, params, tokens) / SEQUENCE)) - shift * (-1) ** (number // 2)
        for i, j in itertools.product(range(rates), range(batches)):
            lr, batch = 2.0 ** (middle_lr + i - rates // 2), 2.0 ** (middle_batch + j - batches // 2)
            loss = loss_of(params, tokens, lr, batch * SEQUENCE, skew) * math.exp(noise * random.standard_normal())
            rows.append((params, tokens, lr, batch, loss))
    return rows


HEADER = ("params", "tokens", "lr", "batch_size", "loss")


def table(tmp_path, rows, header=HEADER, name="grid.csv"):
    path = tmp_path / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def fitted(path, units=SEQUENCE, columns=None, **options):
    return fit_lr_batch(read_lr_batch_table(path, columns, units={"batch": units} if units else None), **options)


def assert_is_the_law(fit, *, lr=True, batch=True, tolerance=1e-6):
    for law, truth, wanted in ((fit.lr, LR, lr), (fit.batch, BATCH, batch)):
        if wanted:
            assert law.params.value == pytest.approx(truth["params"], abs=tolerance)
            assert law.tokens.value == pytest.approx(truth["tokens"], abs=tolerance)
            assert law.center.value == pytest.approx(best(truth, *fit.center), rel=10 * tolerance)


def codes(fit):
    return {item.code for item in fit.diagnostics}


# ---------------------------------------------------------------------------- the estimate


@pytest.mark.parametrize("degree", [2, 3])
def test_a_quadratic_bowl_gives_its_laws_exactly(tmp_path, degree):
    fit = fitted(table(tmp_path, grid_rows()), degree=degree)
    assert_is_the_law(fit)
    assert fit.curvature == pytest.approx(np.array([[0.014, -0.006], [-0.006, 0.012]]), abs=1e-6)
    assert fit.predict_lr(7e9, 1e12).value == pytest.approx(best(LR, 7e9, 1e12), rel=1e-5)
    assert fit.predict_batch(7e9, 1e12).value == pytest.approx(best(BATCH, 7e9, 1e12), rel=1e-5)
    assert fit.lr.scale == pytest.approx(LR["scale"], rel=1e-4)


def test_cubic_terms_keep_the_optimum_of_a_skew_bowl(tmp_path):
    path = table(tmp_path, grid_rows(skew=0.001))
    assert_is_the_law(fitted(path), tolerance=1e-5)
    quadratic = fitted(path, degree=2, window=0.08)
    assert abs(math.log(quadratic.lr.center.value / best(LR, *quadratic.center))) > 0.02


def test_cells_with_their_optimum_beyond_the_grid_inform_the_law(tmp_path):
    fit = fitted(table(tmp_path, grid_rows(shift=3)), degree=2, window=0.08)
    assert sum(cell.lr_edge is not None or cell.batch_edge is not None for cell in fit.cells) >= 5
    assert_is_the_law(fit, tolerance=1e-5)
    assert "grid-edge" in codes(fit)


def test_the_surface_equals_a_fit_by_scipy_with_a_level_per_cell():
    random = np.random.default_rng(1)
    cell = np.repeat(np.arange(6), 25)
    scale = np.stack([np.ones(150), np.repeat(random.normal(size=6), 25), np.repeat(random.normal(size=6), 25)], 1)
    hyper = np.tile(np.array(list(itertools.product(np.linspace(-1.2, 1.2, 5), repeat=2))), (6, 1))
    theta = np.array([[0.1, -0.3, 0.2], [-0.2, 0.1, 0.3]])

    def surface(values):
        u, v = (hyper - scale @ values[:6].reshape(2, 3).T).T
        a, b, c, d, e, f, g = values[6:13]
        shape = a * u * u / 2 + b * u * v + c * v * v / 2 + d * u**3 / 6 + e * u * u * v / 2 + f * u * v * v / 2
        return shape + g * v**3 / 6 + values[13:][cell]

    truth = np.concatenate(
        [theta.ravel(), [0.02, -0.005, 0.015, 0.004, 0.001, -0.002, 0.003], random.normal(size=6)]
    )
    losses = surface(truth) + 0.002 * random.standard_normal(150)
    reference = least_squares(
        lambda values: losses - surface(values), truth, method="lm", xtol=1e-13, ftol=1e-13, gtol=1e-13
    )
    fit = fit_surface(GridRuns(hyper, scale, losses, cell), 3)
    assert fit.theta.ravel() == pytest.approx(reference.x[:6], abs=1e-5)
    assert fit.residuals @ fit.residuals == pytest.approx(2 * reference.cost, rel=1e-9)
    covariance = 2 * reference.cost / (150 - 19) * np.linalg.inv(reference.jac.T @ reference.jac)
    assert fit.covariance()[:6, :6] == pytest.approx(covariance[:6, :6], rel=1e-3)


def test_the_jacobian_equals_differences():
    runs = GridRuns(
        np.array(list(itertools.product([-1.0, -0.4, 0.3, 1.0], repeat=2))),
        np.stack([np.ones(16), np.linspace(-1, 1, 16)], 1),
        np.random.default_rng(2).normal(size=16) * 0.001 + np.arange(16) % 4 * 0.0,
        np.zeros(16, dtype=int),
    )
    powers = polynomial_powers(2, 3)
    values = np.random.default_rng(3).normal(size=4 + len(powers))
    _, jacobian = _evaluate(powers, values[:4].reshape(2, 2), values[4:], runs)
    for index in range(len(values)):
        step = np.zeros(len(values))
        step[index] = 1e-6
        ends = [
            _evaluate(powers, (values + sign * step)[:4].reshape(2, 2), (values + sign * step)[4:], runs)[0]
            for sign in (1, -1)
        ]
        assert jacobian[:, index] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_the_interval_is_the_jackknife_over_cells(tmp_path):
    path = table(tmp_path, grid_rows(noise=0.002))
    fit = fitted(path, window=0.03, degree=2)
    rows = grid_rows(noise=0.002)
    cells = list(dict.fromkeys(row[:2] for row in rows))
    refits = []
    for cell in cells:
        others = table(tmp_path, [row for row in rows if row[:2] != cell], name="others.csv")
        refits.append(fitted(others, window=0.03, degree=2).lr.params.value)
    error = math.sqrt(8 / 9 * sum((value - np.mean(refits)) ** 2 for value in refits))
    assert fit.degrees_of_freedom == 6
    assert fit.lr.params.high - fit.lr.params.value == pytest.approx(1.943180 * error, rel=1e-4)  # t, 6 df, 95%


def test_regret_is_interpolated_between_runs():
    hyper = np.array(list(itertools.product([0.0, 1.0, 2.0], repeat=2)))
    losses = np.array([sum(point) for point in hyper])  # linear, so interpolation is exact
    assert regret(hyper, losses, np.array([0.3, 1.2])) == pytest.approx(math.expm1(1.5))
    assert regret(hyper, losses, np.array([-5.0, 1.0])) == pytest.approx(math.expm1(1.0))
    assert regret(np.repeat(hyper, 2, axis=0), np.repeat(losses, 2), np.array([0.0, 0.0])) == 0
    assert regret(hyper[:3, 1:], losses[:3], np.array([0.5])) == pytest.approx(math.expm1(0.5))


def test_a_saved_fit_predicts_the_same(tmp_path):
    fit = fitted(table(tmp_path, grid_rows(noise=0.002)))
    again = LrBatchFit.model_validate_json(fit.model_dump_json())
    assert again == fit
    assert again.predict_lr(1e10, 1e12) == fit.predict_lr(1e10, 1e12)
    assert fit.predict_lr(1e10, 1e12).low < fit.predict_lr(1e10, 1e12).value < fit.predict_lr(1e10, 1e12).high


# ---------------------------------------------------------------------------- grids that lack something


def test_a_grid_of_learning_rates_alone(tmp_path):
    rows = [row[:3] + row[4:] for row in grid_rows(batches=1, sizes=SIZES)]
    fit = fitted(table(tmp_path, rows, ("params", "tokens", "lr", "loss")), units=None)
    assert fit.batch is None
    assert fit.lr is not None
    assert "one-hyperparameter" in codes(fit)
    assert "batch_scale" not in recipe_table(fit)


def test_a_grid_of_batches_alone_at_one_learning_rate(tmp_path):
    rows = []
    for params, length in itertools.product(SIZES, LENGTHS):
        tokens = params * length
        for step in range(-3, 4):
            batch = 2.0 ** (round(math.log2(best(BATCH, params, tokens))) + step)
            rows.append((params, tokens, 0.001, batch, loss_of(params, tokens, best(LR, params, tokens), batch)))
    fit = fitted(table(tmp_path, rows), units="tokens")
    assert fit.lr is None
    assert_is_the_law(fit, lr=False)
    assert "lr_scale" not in recipe_table(fit)


def test_one_batch_for_all_runs_becomes_the_recipes_batch(tmp_path):
    rows = [(*row[:3], 256, row[4]) for row in grid_rows(batches=1)]
    fit = fitted(table(tmp_path, rows))
    assert fit.fixed_batch == 256 * SEQUENCE
    assert "batch_scale = 524288.0" in recipe_table(fit)


def test_one_n_leaves_the_exponent_of_n_out(tmp_path):
    fit = fitted(table(tmp_path, grid_rows(sizes=(4e8,), lengths=(5, 20, 80, 320))))
    assert (fit.lr.params.value, fit.lr.params.low) == (0, None)
    assert fit.lr.tokens.value == pytest.approx(LR["tokens"], abs=1e-5)
    assert "not-identified" in codes(fit)
    assert "lr_params" not in recipe_table(fit)


def test_one_ratio_of_d_to_n_gives_one_exponent_with_a_warning(tmp_path):
    fit = fitted(table(tmp_path, grid_rows(sizes=(1e8, 2e8, 4e8, 8e8, 1.6e9), lengths=(20,))))
    assert fit.lr.params.value == pytest.approx(LR["params"] + LR["tokens"], abs=1e-5)
    (warning,) = [item for item in fit.diagnostics if item.code == "not-identified"]
    assert "D / N near 20" in warning.message


def test_one_pair_of_n_and_d_gives_values_without_exponents(tmp_path):
    fit = fitted(table(tmp_path, grid_rows(sizes=(4e8,), lengths=(20,), noise=0.001)))
    assert fit.interval_method == "residuals"
    assert fit.lr.center.low < best(LR, 4e8, 8e9) < fit.lr.center.high
    assert {"few-cells", "not-identified"} <= codes(fit)


def test_four_pairs_have_wide_intervals_and_not_none(tmp_path):
    fit = fitted(table(tmp_path, grid_rows(sizes=(1e8, 1.6e9), lengths=(10, 160), noise=0.002)))
    assert (fit.interval_method, fit.degrees_of_freedom) == ("jackknife", 1)
    assert fit.lr.params.low < LR["params"] < fit.lr.params.high


def test_a_table_without_a_grid_is_refused(tmp_path):
    rows = [(params, params * 20, 0.001, 256, 3.0 - index / 10) for index, params in enumerate(SIZES)]
    with pytest.raises(FitError, match="no grid"):
        fitted(table(tmp_path, rows))


def test_rates_and_batches_that_change_together_are_refused(tmp_path):
    rows = [(p, d, lr, lr * 1e5, loss_of(p, d, lr, lr * 2e8)) for p, d, lr, _, _ in grid_rows()]
    with pytest.raises(FitError, match="change together"):
        fitted(table(tmp_path, rows))


def test_losses_without_a_minimum_are_refused(tmp_path):
    rows = [
        (p, d, lr, batch, 3 - 0.01 * math.log(lr) - 0.01 * math.log(batch)) for p, d, lr, batch, _ in grid_rows()
    ]
    with pytest.raises(FitError, match="no minimum in learning rate and batch"):
        fitted(table(tmp_path, rows))


# ---------------------------------------------------------------------------- other people's tables


def test_diverged_runs_do_not_matter(tmp_path):
    rows = [list(row) for row in grid_rows()]
    highest = max(row[2] for row in rows)
    for index, row in enumerate(rows):
        if row[2] > highest / 3:
            row[4] = ("nan", "inf", "", "10.9", "1e9")[index % 5]
    fit = fitted(table(tmp_path, rows))
    assert_is_the_law(fit, tolerance=1e-5)
    assert any("nan" in reason for reason in fit.excluded.values())


def test_seeds_count_as_runs_and_are_named(tmp_path):
    rows = [(*row, seed) for row in grid_rows() for seed in (0, 1)]
    rows = [(*row[:4], row[4] * (1 + 1e-9 * row[5]), row[5]) for row in rows]
    fit = fitted(table(tmp_path, rows, (*HEADER, "seed")))
    assert_is_the_law(fit, tolerance=1e-5)
    (note,) = [item for item in fit.diagnostics if item.code == "seeds"]
    assert "270 runs repeat" in note.message


@pytest.mark.parametrize("form", ["{:.6e}", "{:.5E}", "{}"])
def test_learning_rates_in_scientific_text(tmp_path, form):
    rows = [(p, d, form.format(lr), batch, loss) for p, d, lr, batch, loss in grid_rows()]
    assert_is_the_law(fitted(table(tmp_path, rows)), tolerance=1e-4)


def test_decimal_commas(tmp_path):
    text = "params;tokens;lr;batch_size;loss\n" + "\n".join(
        ";".join(str(value).replace(".", ",") for value in row) for row in grid_rows()
    )
    path = tmp_path / "grid.csv"
    path.write_text(text)
    assert_is_the_law(fitted(path))


@pytest.mark.parametrize(
    ("name", "scale", "units"),
    [
        ("batch_size", 1, SEQUENCE),
        ("global_batch_size", 1, SEQUENCE),
        ("bs", SEQUENCE, "tokens"),
        ("batch_tokens", SEQUENCE, None),
        ("tokens_per_batch", SEQUENCE, None),
        ("config.batch_size_tokens", SEQUENCE, None),
    ],
)
def test_batches_in_sequences_or_tokens(tmp_path, name, scale, units):
    rows = [(p, d, lr, batch * scale, loss) for p, d, lr, batch, loss in grid_rows()]
    assert_is_the_law(fitted(table(tmp_path, rows, ("params", "tokens", "lr", name, "loss")), units))


def test_a_batch_without_a_unit_is_refused_with_the_choices(tmp_path):
    with pytest.raises(
        FitError, match=r"--units batch=tokens .* --units batch=2048 .* --column sequence="
    ) as error:
        fitted(table(tmp_path, grid_rows()), units=None)
    assert "'batch_size'" in str(error.value)


def test_the_sequence_length_comes_from_a_column_or_the_steps(tmp_path):
    with_length = table(tmp_path, [(*row, SEQUENCE) for row in grid_rows()], (*HEADER, "seq_len"))
    assert_is_the_law(fitted(with_length, units=None))
    rows = [(*row, round(row[1] / row[3] / SEQUENCE)) for row in grid_rows()]
    with_steps = table(tmp_path, rows, (*HEADER, "max_steps"), name="steps.csv")
    fit = fitted(with_steps, units=None)
    assert_is_the_law(fit)
    assert any("times 2048, by D / (batch_size x max_steps)" in item.message for item in fit.diagnostics)


def test_an_implausible_unit_of_the_batch_is_a_warning(tmp_path):
    assert "batch-unit" in codes(fitted(table(tmp_path, grid_rows()), units=2048 * 1e4))
    assert "batch-unit" not in codes(fitted(table(tmp_path, grid_rows())))


def test_a_wandb_export_is_read(tmp_path):
    header = ("Name", "State", "config.learning_rate", "config.batch_size", "config.block_size")
    header += ("config.n_params", "config.tokens", "summary.val/loss", "summary._step")
    rows = [
        (f"sweep-{index}", "finished", lr, batch, SEQUENCE, p, d, loss, 1000)
        for index, (p, d, lr, batch, loss) in enumerate(grid_rows())
    ]
    rows += [("sweep-x", "crashed", 0.5, 8, SEQUENCE, 1e8, 1e9, 1.0, 10)]
    fit = fitted(table(tmp_path, rows, header), units=None)
    assert_is_the_law(fit)
    assert len(fit.excluded) == 1


def test_two_learning_rates_are_refused_with_the_choices(tmp_path):
    rows = [(*row, row[2] / 10) for row in grid_rows()]
    path = table(tmp_path, rows, ("params", "tokens", "learning_rate", "batch_size", "loss", "lr"))
    with pytest.raises(FitError, match="--column lr=learning_rate or --column lr=lr"):
        fitted(path)
    assert_is_the_law(fitted(path, columns={"lr": "learning_rate"}))


def test_two_learning_rates_that_agree_are_fine(tmp_path):
    rows = [(*row, f"{row[2]:.12e}") for row in grid_rows()]
    path = table(tmp_path, rows, ("params", "tokens", "learning_rate", "batch_size", "loss", "lr"))
    assert_is_the_law(fitted(path))


def test_a_batch_per_device_is_refused_with_the_choices(tmp_path):
    header = ("params", "tokens", "learning_rate", "per_device_train_batch_size", "loss")
    path = table(tmp_path, grid_rows(), header)
    with pytest.raises(FitError, match=r"the batch of a device .* --units batch=FACTOR"):
        fitted(path, units=None)
    columns = {"batch": "per_device_train_batch_size"}
    assert_is_the_law(fitted(path, columns=columns))
    with pytest.raises(FitError, match="differ in 'per_device_train_batch_size'"):
        fitted(path, units=None, columns={"batch": "none"})
    same = [(*row[:3], 8, row[4]) for row in grid_rows(batches=1)]
    path = table(tmp_path, same, header)
    assert fitted(path, units=None, columns={"batch": "none"}).batch is None


def test_a_micro_batch_is_refused_with_the_choices(tmp_path):
    rows = [(*row, 4) for row in grid_rows()]
    path = table(tmp_path, rows, (*HEADER, "gradient_accumulation_steps"))
    with pytest.raises(FitError, match="may be a micro-batch"):
        fitted(path)
    assert_is_the_law(fitted(path, columns={"batch": "batch_size"}))
    ones = table(
        tmp_path, [(*row, 1) for row in grid_rows()], (*HEADER, "gradient_accumulation_steps"), "ones.csv"
    )
    assert_is_the_law(fitted(ones))


def test_another_hyperparameter_at_equal_settings_is_refused(tmp_path):
    rows = [(*row[:4], row[4] * (1 + decay), decay) for row in grid_rows() for decay in (0.0, 0.1)]
    path = table(tmp_path, rows, (*HEADER, "weight_decay"))
    with pytest.raises(FitError, match=r"differ in 'weight_decay' .*--filter weight_decay=0.0"):
        fitted(path)
    read = read_lr_batch_table(path, where={"weight_decay": "0.1"}, units={"batch": SEQUENCE})
    assert_is_the_law(fit_lr_batch(read))


def test_datasets_have_separate_cells(tmp_path):
    scales = {"c4": 1, "code": 0.6}
    rows = [(*row[:4], row[4] * scale, name) for row in grid_rows() for name, scale in scales.items()]
    fit = fitted(table(tmp_path, rows, (*HEADER, "dataset")))
    assert len(fit.cells) == 18
    assert_is_the_law(fit)


def test_a_row_without_a_learning_rate_is_named(tmp_path):
    rows = [*grid_rows(), (1e8, 1e9, "", 256, 3.0), (1e8, 1e9, 0, 256, 3.0)]
    fit = fitted(table(tmp_path, rows))
    assert set(fit.excluded.values()) == {
        "lr is missing; it must be a positive number",
        "lr is 0; it must be a positive number",
    }


@pytest.mark.parametrize("header", [("params", "tokens", "log_lr", "loss"), ("params", "tokens", "x", "loss")])
def test_a_table_without_hyperparameters_is_refused(tmp_path, header):
    path = table(tmp_path, [(p, d, math.log(lr), loss) for p, d, lr, _, loss in grid_rows()], header)
    with pytest.raises(FitError, match="no column for the learning rate or the batch") as error:
        read_lr_batch_table(path)
    assert ("is a logarithm" in str(error.value)) == ("log_lr" in header)


def test_json_records_are_read(tmp_path):
    path = tmp_path / "grid.jsonl"
    records = [dict(zip(HEADER, row, strict=True)) for row in grid_rows()]
    path.write_text("\n".join(map(json.dumps, records)))
    assert_is_the_law(fitted(path))


# ---------------------------------------------------------------------------- the command and the recipe


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})


EXPERIMENT = """# my study
[model]
name = "gpt"  # small

[dataset]
name = "text"

[recipe]
name = "width-scaled"
lr = 0.004

[sweep]
sizes = [{ width = 16 }, { width = 24 }]
budgets = [2e11]
"""


def test_the_command_prints_laws_intervals_and_a_recipe(tmp_path):
    done = run("fit", table(tmp_path, grid_rows(noise=0.001)), "--law", "lr-batch", "--units", "batch=2048")
    assert done.exit_code == 0, done.output
    for text in ("lr* = ", "batch* (tokens) = ", "90% intervals", "[recipe]", 'name = "power-law"', "held-out"):
        assert text in done.output


def test_json_output_is_the_fit(tmp_path):
    done = run("fit", table(tmp_path, grid_rows()), "--law", "lr-batch", "--units", "batch=2048", "--json")
    assert_is_the_law(LrBatchFit.model_validate_json(done.stdout))


def test_an_experiment_builds_from_the_recipe(tmp_path):
    """The plan's learning rates and batches are those of the law at each run's N and D."""
    small = {"sizes": (2e4, 8e4, 3.2e5), "lengths": LENGTHS}
    grid = table(tmp_path, grid_rows(**small))
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(EXPERIMENT)
    done = run("fit", grid, "--law", "lr-batch", "--units", "batch=2048", "--out", experiment)
    assert done.exit_code == 0, done.output
    text = experiment.read_text()
    assert text.startswith("# my study\n")
    assert 'name = "gpt"  # small' in text
    assert "width-scaled" not in text
    plan = make_plan(load_experiment(experiment, installed()), installed())
    assert plan.runs
    for planned in plan.runs:
        lr = planned.optimizer.options["lr"]
        assert lr == pytest.approx(best(LR, planned.params, planned.tokens), rel=0.01)
        assert planned.tokens_per_step == pytest.approx(best(BATCH, planned.params, planned.tokens), rel=0.12)


def test_values_that_win_over_the_recipe_are_named(tmp_path):
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(EXPERIMENT + '\n[optimizer]\nname = "adamw"\nlr = 0.01\n')
    done = run(
        "fit", table(tmp_path, grid_rows()), "--law", "lr-batch", "--units", "batch=2048", "--out", experiment
    )
    assert "sets optimizer.lr, which wins over the recipe" in " ".join(done.output.split())


def test_the_recipe_can_be_written_to_a_new_file(tmp_path):
    out = tmp_path / "recipe.toml"
    done = run("fit", table(tmp_path, grid_rows()), "--law", "lr-batch", "--units", "batch=2048", "--out", out)
    assert done.exit_code == 0, done.output
    assert out.read_text().startswith("[recipe]\n")
    pasted = tmp_path / "pasted.toml"
    pasted.write_text(EXPERIMENT.replace('[recipe]\nname = "width-scaled"\nlr = 0.004\n', out.read_text()))
    assert load_experiment(pasted, installed()).recipe.spec.name == "power-law"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--law", "lr-bath"], "--law lr-batch fits the best learning rate and batch"),
        (["--law", "lr-batch", "--profile"], "cannot be combined with --profile"),
        (["--law", "lr-batch", "--best-of", "lr"], "cannot be combined with --best-of"),
        (["--law", "lr-batch", "--set", "windows=0.1"], "has the options window, degree, level, n"),
        (["--law", "lr-batch", "--set", "window=2"], "a number between 0 and 1"),
        (["--law", "lr-batch", "--set", "degree=4"], "write 2 or 3"),
        (["--law", "lr-batch", "--set", "n=active"], "matmul, total, non-embedding"),
        (["--law", "lr-batch", "--out", "fit.csv"], "write a .toml file for the recipe"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, message):
    done = run("fit", table(tmp_path, grid_rows()), "--units", "batch=2048", *arguments)
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


# ---------------------------------------------------------------------------- a public grid


@pytest.mark.skipif(not STEPLAW.exists(), reason="the public tables are not here")
def test_the_public_grid_of_step_law_is_near_its_published_law():
    """Li et al. 2025: lr = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571 tokens; sequences of 2,048 tokens."""
    read = read_lr_batch_table(STEPLAW, {"loss": "smooth loss", "steps": "ti"})
    fit = fit_lr_batch(read)
    assert len(read.loss) == 1911
    assert len(fit.cells) == 17
    assert fit.lr.params.value == pytest.approx(-0.713, abs=0.1)
    assert fit.lr.tokens.value == pytest.approx(0.307, abs=0.12)
    assert fit.batch.tokens.value == pytest.approx(0.571, abs=0.06)
    published = [1.79 * 4e8**-0.713 * 2e10**0.307, 0.58 * 2e10**0.571]
    assert fit.predict_lr(4e8, 2e10).value == pytest.approx(published[0], rel=0.2)
    assert fit.predict_batch(4e8, 2e10).value == pytest.approx(published[1], rel=0.2)
    assert fit.mean_regret < 0.001
