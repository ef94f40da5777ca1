"""The interval of a new run: coverage of simulated runs, order of intervals, refusals, the command line."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from surfaces import CHINCHILLA, study
from typer.testing import CliRunner

from flops_fit_core import FitError, Observation
from flops_fit_core.cli import app
from flops_fit_core.fitting import (
    AverageFitter,
    EnvelopeFitter,
    IsoflopFitter,
    LawFitter,
    off_optimum,
    optimum,
    predict_loss,
    require_new_run,
    write_fit,
)
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.uncertainty.holdout import (
    Fold,
    Forecast,
    average_forecasts,
    estimate_new_run,
    make_folds,
    predict_fold,
)
from flops_fit_core.plugins.registry.law_index import find_law

BUDGETS = 10.0 ** np.arange(18, 21.1, 0.75)
OFFSETS = np.geomspace(0.25, 4, 6)
SIGMA = 0.004


@pytest.fixture(scope="module")
def fit():
    return AverageFitter(draws=200).fit(study(CHINCHILLA, BUDGETS, OFFSETS, sigma=SIGMA))


@pytest.fixture(scope="module")
def single():
    return LawFitter(law="chinchilla", draws=200).fit(study(CHINCHILLA, BUDGETS, OFFSETS, sigma=SIGMA))


@pytest.mark.parametrize("name", ["fit", "single"])
def test_the_interval_of_a_new_run_contains_that_of_the_law(name, request):
    law = request.getfixturevalue(name)
    for flops in (1e19, 1e21, 1e22, 1e24):
        best = optimum(law, flops)
        assert best.new_run.value == best.loss.value
        assert best.new_run.low < best.loss.low < best.loss.value < best.loss.high < best.new_run.high
        narrow = predict_loss(law, best.params.value, best.tokens.value)
        wide = predict_loss(law, best.params.value, best.tokens.value, new_run=True)
        assert wide.low < narrow.low < narrow.high < wide.high
        # The optimum of each draw is lower than the draw at this N and D, by much less than the noise.
        assert (wide.low, wide.high) == pytest.approx((best.new_run.low, best.new_run.high), rel=1e-3)


def test_the_interval_widens_beyond_the_range_of_the_runs(fit):
    widths = [np.log(new.high / new.low) for new in (optimum(fit, flops).new_run for flops in (1e20, 1e22, 1e24))]
    assert widths[0] < widths[1] < widths[2]


def test_the_noise_of_a_run_is_estimated_from_the_runs(fit, single):
    for law in (fit, single):
        assert require_new_run(law).sigma == pytest.approx(SIGMA, rel=0.35)
    inside = optimum(single, 1e19).new_run
    # 90% of Gaussian noise lies within 1.645 sigma; few degrees of freedom widen this.
    assert np.log(inside.high / inside.low) == pytest.approx(2 * 1.645 * SIGMA, rel=0.5)


def test_another_size_has_an_interval_of_a_new_run_too(fit):
    off = off_optimum(fit, 1e22, 3e9)
    assert off.new_run.low < off.loss.low < off.loss.high < off.new_run.high


def test_a_fit_without_draws_has_an_interval_of_a_new_run():
    plain = AverageFitter(draws=0).fit(study(CHINCHILLA, BUDGETS, OFFSETS, sigma=SIGMA))
    best = optimum(plain, 1e21)
    assert best.loss.low is None
    assert best.new_run.low < best.loss.value < best.new_run.high


def test_fitters_of_the_optimum_have_no_interval_of_a_new_run():
    fit = IsoflopFitter(draws=20).fit(study(CHINCHILLA, BUDGETS, OFFSETS, sigma=SIGMA))
    assert optimum(fit, 1e21).new_run is None
    message = (
        r"fitters/isoflop gives no interval for a new run: fit with fitter average, or one law \(--law NAME\)"
    )
    with pytest.raises(FitError, match=message):
        require_new_run(fit)
    curves = [
        Observation(
            id=f"{params:.3e}/{tokens:.3e}",
            params=params,
            tokens=tokens,
            flops=6 * params * tokens,
            loss=CHINCHILLA.loss(params, tokens),
            trajectory=f"{params:.3e}",
        )
        for params, tokens in itertools.product(np.geomspace(1e7, 1e10, 24), np.geomspace(1e9, 1e12, 24))
    ]
    with pytest.raises(FitError, match="gives no interval for a new run"):
        require_new_run(EnvelopeFitter(draws=0).fit(curves))


# ---------------------------------------------------------------------------- the estimate


def backtest(runs, errors, variance):
    """A backtest that fits the smallest budget and predicts the others with these errors."""
    fitted = runs.flops < 1.01 * runs.flops.min()
    distance = np.log(runs.flops[~fitted] / runs.flops.min())
    fold = Fold(fitted, ~fitted, distance, np.ones(len(distance)))
    return fold, Forecast(errors(distance), np.full(len(distance), variance))


@pytest.fixture(scope="module")
def runs():
    return Runs.of(study(CHINCHILLA, BUDGETS, OFFSETS, sigma=SIGMA))


def test_the_drift_is_the_error_per_log_distance_that_noise_and_parameters_do_not_explain(runs):
    residuals, leverage = np.full(len(runs), 0.01), np.full(len(runs), 0.2)
    fold, forecast = backtest(
        runs, lambda distance: np.sqrt(0.01**2 / 0.8 + 0.02**2 + (0.03 * distance) ** 2), 4e-4
    )
    error = estimate_new_run([fold], [forecast], runs, residuals, leverage)
    assert error.drift_rate == pytest.approx(0.03)
    # Ten runs with a fifth of a parameter each: the two largest budgets of six runs.
    assert (error.sigma, error.sigma_dof) == pytest.approx((0.01 / np.sqrt(0.8), 12 * 0.8))
    explained = Forecast(forecast.errors, np.full(len(forecast.errors), 1.0))
    assert estimate_new_run([fold], [explained], runs, residuals, leverage).drift_rate == 0


def test_errors_that_cancel_in_their_mean_show_a_drift(runs):
    fold, forecast = backtest(runs, lambda distance: 0.05 * distance * (-1.0) ** np.arange(len(distance)), 0.0)
    error = estimate_new_run([fold], [forecast], runs, np.zeros(len(runs)), np.zeros(len(runs)))
    assert error.drift_rate == pytest.approx(0.05)


def test_the_variance_of_a_backtest_is_the_spread_of_its_predictions():
    law, forecasts = find_law("chinchilla"), []
    for seed in range(60):
        noisy = Runs.of(study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.002, seed=seed))
        fold = make_folds(noisy, 8)[-1]
        truth = CHINCHILLA.loss(noisy.params, noisy.tokens)[fold.held_out]
        forecast = predict_fold(law, noisy, fold, 3.0, prior=False)
        forecasts.append((forecast.errors + np.log(noisy.loss[fold.held_out] / truth), forecast.variance))
    errors, variances = (np.array(part) for part in zip(*forecasts, strict=True))
    assert np.sqrt(variances.mean()) == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.25)


def test_the_variance_of_averaged_forecasts_includes_the_differences_of_the_laws():
    first, second = (Forecast(np.array([error]), np.array([1.0])) for error in (0.0, 4.0))
    mean = average_forecasts([first, second], [0.75, 0.25])
    assert mean.errors == pytest.approx([1.0])
    assert mean.variance == pytest.approx([1.0 + 0.75 * 1 + 0.25 * 9])


# ---------------------------------------------------------------------------- coverage


@pytest.mark.slow
@pytest.mark.parametrize("flops", [1e19, 1e21, 1e22, 1e23])
def test_90_percent_intervals_hold_90_percent_of_further_runs(flops):
    """200 studies, and 50 runs of each; beyond the range, the interval also covers the law's drift."""
    params = CHINCHILLA.n_opt(flops)
    tokens = CHINCHILLA.tokens(flops, params)
    truth = CHINCHILLA.loss(params, tokens)
    held = []
    for seed in range(200):
        law = AverageFitter(draws=100).fit(study(CHINCHILLA, BUDGETS, OFFSETS, sigma=SIGMA, seed=seed))
        new_run = predict_loss(law, params, tokens, new_run=True)
        losses = truth * np.exp(SIGMA * np.random.default_rng(10_000 + seed).standard_normal(50))
        held.append(np.mean((new_run.low <= losses) & (losses <= new_run.high)))
    assert 0.87 <= np.mean(held) <= (0.94 if flops <= BUDGETS[-1] else 0.99)


# ---------------------------------------------------------------------------- command line


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=SIGMA)
    lines = [f"{run.params},{run.tokens},{run.flops},{run.loss}" for run in runs]
    (tmp_path / "runs.csv").write_text("\n".join(["params,tokens,flops,loss", *lines]) + "\n")
    return "runs.csv"


def call(*words):
    return CliRunner(env={"COLUMNS": "220"}).invoke(app, list(words))


def test_predict_prints_the_interval_of_the_law_and_of_a_new_run(table):
    words = ["predict", table, "--set", "draws=60", "--flops", "1e22"]
    plain, both = call(*words), call(*words, "--new-run", "--explain")
    assert (plain.exit_code, both.exit_code) == (0, 0), plain.output + both.output
    assert "new run" not in plain.output
    assert "   a new run " in both.output
    assert "90% law" in both.output
    assert "90% new run" in both.output
    assert "The law's interval holds the mean loss of many runs, the new run's that of one." in " ".join(
        both.output.split()
    )


def test_the_json_of_predict_has_both_intervals(table):
    done = call("predict", table, "--set", "draws=60", "--flops", "1e22", "--new-run", "--json")
    assert done.exit_code == 0, done.output
    best = json.loads(done.output)
    assert best["new_run"]["low"] < best["loss"]["low"] < best["loss"]["high"] < best["new_run"]["high"]


def test_predict_refuses_the_interval_of_a_new_run_of_an_isoflop_fit(table):
    done = call("predict", table, "--fitter", "isoflop", "--set", "draws=20", "--flops", "1e22", "--new-run")
    assert done.exit_code != 0
    assert "gives no interval for a new run: fit with fitter average" in str(done.exception or done.output)


def test_a_saved_fit_predicts_a_new_run(fit, tmp_path):
    write_fit(fit, tmp_path / "fit.json")
    done = call("predict", str(tmp_path / "fit.json"), "--flops", "1e22", "--new-run", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["new_run"] == optimum(fit, 1e22).new_run.model_dump()


def test_without_a_backtest_no_interval_of_a_new_run_reaches_beyond_the_runs():
    runs = study(CHINCHILLA, (1e18, 1e19), np.geomspace(0.3, 3, 4), sigma=0.003)
    fit = AverageFitter(draws=50).fit(runs)
    assert fit.new_run.drift_dof == 0
    assert optimum(fit, 1e19).new_run is not None
    assert optimum(fit, 1e20).new_run is None
    best = optimum(fit, 1e20)
    with pytest.raises(FitError, match="the runs allow no backtest"):
        predict_loss(fit, best.params.value, best.tokens.value, new_run=True)
