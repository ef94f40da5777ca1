"""Noise of many kinds: outliers, growth with N or C, trajectories, and designs that determine nothing."""

from __future__ import annotations

import numpy as np
import pytest
from surfaces import CHINCHILLA, study

from flops_fit_core import FitError, LawFit, Observation
from flops_fit_core.fitting import ParametricFitter, optimum
from flops_fit_core.fitting.solvers.newton import ChinchillaProblem, derivatives, value
from flops_fit_core.fitting.solvers.objectives import LeastSquares
from flops_fit_core.fitting.solvers.surface_fit import fit_surface, make_problem, refit
from flops_fit_core.fitting.uncertainty.noise import build_covariates, fit_noise

BUDGETS = 10.0 ** np.arange(17, 22)


def codes(fit: LawFit) -> set[str]:
    return {each.code for each in fit.diagnostics}


def message(fit: LawFit, code: str) -> str:
    return next(each.message for each in fit.diagnostics if each.code == code)


def checkpoints(trajectories, seed, count=25, offset=0.01, within=0.001):
    """Training curves: the checkpoints of a run share its offset."""
    random = np.random.default_rng(seed)
    runs = []
    for number in range(trajectories):
        params = np.geomspace(2e7, 1e9, 6)[number % 6]
        shared = offset * random.standard_normal()
        for tokens in 1e9 * 1.25 ** np.arange(count):
            loss = CHINCHILLA.loss(params, tokens) * np.exp(shared + within * random.standard_normal())
            runs.append(
                Observation(
                    id=str(len(runs)),
                    params=params,
                    tokens=tokens,
                    flops=6 * params * tokens,
                    loss=loss,
                    trajectory=f"run{number}",
                )
            )
    return runs


def spoilt(runs, row, factor):
    return [
        each.model_copy(update={"loss": each.loss * factor}) if number == row else each
        for number, each in enumerate(runs)
    ]


def problem_of(runs):
    return make_problem(*(np.log([getattr(run, name) for run in runs]) for name in ("params", "tokens", "loss")))


def test_intervals_of_training_curves_cover_the_truth_without_warnings():
    hits = []
    for seed in range(10):
        fit = ParametricFitter(draws=150).fit(checkpoints(12, seed))
        a = fit.exponents["a"]
        params = optimum(fit, 1e23).params
        hits.append((a.low <= CHINCHILLA.a <= a.high, params.low <= CHINCHILLA.n_opt(1e23) <= params.high))
        assert a.high - a.low < 0.06
        assert "lack-of-fit" not in codes(fit)
    assert np.min(np.mean(hits, axis=0)) >= 0.7


def test_fewer_than_eight_training_curves_have_no_interval():
    fit = ParametricFitter(draws=50).fit(checkpoints(6, 0))
    assert fit.exponents["a"].low is None
    assert "150 rows are 6 independent runs" in message(fit, "no-interval")
    assert fit.exponents["a"].value == pytest.approx(CHINCHILLA.a, abs=0.02)


def test_a_spike_within_a_training_curve_is_left_out():
    runs = checkpoints(8, 1)
    fit = ParametricFitter(draws=50).fit(spoilt(runs, 30, 1.03))
    assert "30" in fit.excluded
    assert len(fit.excluded) < 3
    assert "generalised least squares" in message(fit, "objective")


def test_generalised_least_squares_agrees_with_dense_matrices():
    runs = checkpoints(6, 3, count=5)
    trunk = np.repeat(np.arange(6), 5)
    plain = problem_of(runs)
    problem = plain.with_correlation(trunk, 0.9)
    theta = np.array([[1.5, -1.0, 0.4, -0.8, 0.3]])
    loss = theta[0, 0] + np.exp(theta[0, 1] - 0.4 * plain.u) + np.exp(theta[0, 3] - 0.3 * plain.v)
    r = plain.y - np.log(loss)
    dense = np.eye(30) * 0.1 + 0.9 * (trunk[:, None] == trunk)
    assert value(problem, theta, LeastSquares())[0] == pytest.approx(0.05 * r @ np.linalg.solve(dense, r))
    gradient, hessian = derivatives(problem, theta, LeastSquares())
    for index in range(5):
        step = np.zeros((1, 5))
        step[0, index] = 1e-6
        around = [value(problem, theta + sign * step, LeastSquares())[0] for sign in (1, -1)]
        assert gradient[0, index] == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-5, abs=1e-8)
        bend = [derivatives(problem, theta + sign * step, LeastSquares())[0][0] for sign in (1, -1)]
        assert hessian[0, index] == pytest.approx((bend[0] - bend[1]) / 2e-6, rel=1e-3, abs=1e-4)


def test_an_outlier_among_twelve_runs_is_left_out_and_counted():
    clean = study(CHINCHILLA, BUDGETS[:4], (0.25, 1.0, 4.0), sigma=0.004, seed=3)
    fit = ParametricFitter(draws=50).fit(spoilt(clean, 3, 1.08))
    assert set(fit.excluded) == {clean[3].id}
    assert "1 of 12 runs rejected as outliers" in message(fit, "objective")
    assert ParametricFitter(draws=0).fit(clean).excluded == {}
    assert "no run rejected as an outlier" in message(ParametricFitter(draws=0).fit(clean), "objective")


def test_nine_runs_are_too_few_to_detect_outliers():
    runs = study(CHINCHILLA, BUDGETS[:3], (0.25, 1.0, 4.0), sigma=0.004, seed=3)
    assert "9 are too few to detect outliers" in message(ParametricFitter(draws=0).fit(runs), "objective")


def test_too_many_outliers_are_all_used_and_reported():
    runs = study(CHINCHILLA, BUDGETS, np.geomspace(0.2, 5, 6), sigma=0.002)
    for row in range(1, 30, 4):
        runs = spoilt(runs, row, 1.2)
    fit = ParametricFitter(draws=0).fit(runs)
    assert fit.excluded == {}
    assert "too many to leave out" in message(fit, "objective")
    assert "too many to leave out" in message(fit, "outliers")


def test_clean_runs_are_seldom_left_out():
    for count, sizes in ((4, 3), (5, 7)):
        fits = [
            ParametricFitter(draws=0).fit(study(CHINCHILLA, BUDGETS[:count], np.geomspace(0.25, 4, sizes), **more))
            for more in ({"sigma": 0.01, "seed": seed} for seed in range(40))
        ]
        assert sum(bool(fit.excluded) for fit in fits) <= 4


def test_draws_after_a_rejection_reject_again():
    runs = spoilt(study(CHINCHILLA, BUDGETS, np.geomspace(0.25, 4, 4), sigma=0.01, seed=2), 7, 1.1)
    fit = ParametricFitter(draws=300).fit(runs)
    assert set(fit.excluded) == {runs[7].id}
    alone = ParametricFitter(draws=300).fit([run for run in runs if run.id != runs[7].id])
    assert alone.law.parameters == pytest.approx(fit.law.parameters, rel=1e-6)
    widths = [np.ptp(np.quantile(each.draws["alpha"], [0.05, 0.95])) for each in (fit, alone)]
    assert widths[0] > 1.02 * widths[1]


@pytest.mark.parametrize("column", [2, 3], ids=["N", "C"])
def test_growing_noise_is_detected(column):
    random = np.random.default_rng(0)
    ln_params, ln_flops = random.uniform(0, 7, (2, 60))
    growing = ln_params if column == 2 else ln_flops
    design = np.stack([np.ones(60), random.normal(size=60)], axis=1)
    errors = random.normal(size=60) * 0.01 * np.exp(0.4 * (growing - 3.5))
    residuals = errors - design @ np.linalg.lstsq(design, errors, rcond=None)[0]
    offset = random.uniform(-1, 1, 60)
    covariates = build_covariates(offset, ln_params, ln_flops)
    sigma = fit_noise(residuals, design, covariates, np.arange(60)).sigma()
    ratio = sigma[growing > 6].mean() / sigma[growing < 1].mean()
    assert 4 < ratio < 25  # e^(.4 * 6) = 11
    level = fit_noise(residuals, design, build_covariates(offset), np.arange(60)).sigma()
    assert level.max() / level.min() < 4


def test_above_two_thousand_rows_the_rules_are_the_same():
    runs = [
        run.model_copy(update={"id": f"{run.id} {seed}", "trajectory": f"run{row % 12}"})
        for seed in range(20)
        for row, run in enumerate(study(CHINCHILLA, BUDGETS, np.geomspace(0.2, 5, 21), sigma=0.01, seed=seed))
    ]
    assert len(runs) == 2100
    with pytest.raises(FitError, match="20 independent runs"):
        ParametricFitter(bootstrap="cases", draws=10).fit(runs)


def test_refits_in_chunks_equal_refits_in_one_call():
    problem = problem_of(study(CHINCHILLA, BUDGETS, np.geomspace(0.2, 5, 100), sigma=0.01))
    fit = fit_surface(problem, LeastSquares())
    y = problem.y + 0.01 * np.random.default_rng(0).standard_normal((200, 500))
    parts = refit(ChinchillaProblem(problem.u, problem.v, y), fit.theta, LeastSquares())
    few = ChinchillaProblem(problem.u, problem.v, y[150:160]).solve(np.tile(fit.theta, (10, 1)), LeastSquares())
    assert parts.theta[150:160] == pytest.approx(few.theta, rel=1e-6)


def test_one_ratio_of_tokens_to_params_has_no_interval_of_a():
    for seed in range(3):
        random = np.random.default_rng(seed)
        runs = [
            Observation(
                id=str(number),
                params=params,
                tokens=20 * params,
                flops=120 * params**2,
                loss=CHINCHILLA.loss(params, 20 * params) * np.exp(0.005 * random.standard_normal()),
            )
            for number, params in enumerate(np.tile([1e7, 2e7, 5e7, 1e8, 2e8, 5e8, 1e9, 2e9], 3))
        ]
        fit = ParametricFitter(draws=100).fit(runs)
        assert fit.exponents["a"].low is None
        assert optimum(fit, 1e23).params.low is None
        assert {"no-interval", "one-ratio"} <= codes(fit)
