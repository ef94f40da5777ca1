"""Diagnostics of residuals: curvature about the optimum, and runs outside the interval of a new run."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from readme_study import README_RUNS
from scipy import stats
from surfaces import CHINCHILLA, study

from flops_fit_core.fitting import ParametricFitter
from flops_fit_core.fitting.residual_diagnostics import (
    FittedResiduals,
    check_residuals,
    count_outside,
    curvature_p_value,
    deletion_residuals,
)
from flops_fit_core.fitting.uncertainty.noise import NoiseModel, build_covariates

BUDGETS = 10.0 ** np.arange(17, 22)
WIDE = tuple(np.geomspace(0.25, 4, 6))


def messages(fit):
    return {diagnostic.code: diagnostic.message for diagnostic in fit.diagnostics}


def fitted_line(y, jacobian, offsets):
    """Residuals of an ordinary least-squares fit, with noise of one level."""
    residuals = y - jacobian @ np.linalg.lstsq(jacobian, y, rcond=None)[0]
    dof = len(y) - jacobian.shape[1]
    noise = NoiseModel(
        covariates=build_covariates(offsets),
        trunk=np.arange(len(y)),
        settings=np.zeros((1, 5)),
        probability=np.ones(1),
        scale=np.array([np.sqrt(residuals @ residuals)]),
        dof=dof,
    )
    return FittedResiduals(residuals, jacobian, offsets, noise, [f"run{row}" for row in range(len(y))])


def simulated_line(seed=0, bend=0.0, n=24):
    random = np.random.default_rng(seed)
    offsets = random.uniform(-1.5, 1.5, n)
    jacobian = np.column_stack([np.ones(n), random.standard_normal((n, 3))])
    y = jacobian @ [1.0, 0.3, -0.2, 0.1] + bend * offsets**2 + 0.01 * random.standard_normal(n)
    return y, jacobian, offsets


def test_the_curvature_test_is_the_f_test_of_one_more_column():
    y, jacobian, offsets = simulated_line(bend=0.004)
    larger = np.column_stack([jacobian, offsets**2])
    rss = [float(np.linalg.lstsq(columns, y, rcond=None)[1][0]) for columns in (jacobian, larger)]
    dof = len(y) - larger.shape[1]
    expected = stats.f.sf((rss[0] - rss[1]) / (rss[1] / dof), 1, dof)
    assert curvature_p_value(fitted_line(y, jacobian, offsets)) == pytest.approx(expected, rel=1e-9)


def test_deletion_residuals_compare_each_run_with_a_fit_without_it():
    y, jacobian, offsets = simulated_line()
    expected = []
    for row in range(len(y)):
        rest = np.arange(len(y)) != row
        beta, rss, *_ = np.linalg.lstsq(jacobian[rest], y[rest], rcond=None)
        variance = float(rss[0]) / (rest.sum() - 4)
        leverage = jacobian[row] @ np.linalg.inv(jacobian[rest].T @ jacobian[rest]) @ jacobian[row]
        expected.append((y[row] - jacobian[row] @ beta) / math.sqrt(variance * (1 + leverage)))
    assert deletion_residuals(fitted_line(y, jacobian, offsets)) == pytest.approx(expected, rel=1e-9)


def test_deletion_residuals_are_relative_to_the_noise_of_each_run():
    y, jacobian, offsets = simulated_line()
    equal = fitted_line(y, jacobian, offsets)
    settings = np.array([[1.0, 0.0, 0.0, 0.0, 0.0]])  # under-trained runs have e times the noise
    unequal = replace(equal, noise=replace(equal.noise, settings=settings))
    ratio = np.abs(deletion_residuals(unequal) / deletion_residuals(equal))
    assert ratio[offsets > 0].max() < ratio[offsets <= 0].min()


@pytest.mark.parametrize("count", [0, 3, 8])
def test_runs_outside_their_interval_are_counted_against_the_binomial_distribution(count):
    dof = 15
    limit = stats.t.ppf(0.95, dof)
    standardised = np.concatenate([np.full(count, 1.01 * limit), np.full(20 - count, -0.99 * limit)])
    outside = count_outside(standardised, dof)
    chances = [math.comb(20, k) * 0.1**k * 0.9 ** (20 - k) for k in range(count, 21)]
    assert outside.count == count
    assert outside.expected == pytest.approx(2)
    assert outside.p_value == pytest.approx(sum(chances))


def test_a_second_kind_of_runs_is_reported_as_too_many_outside():
    random = np.random.default_rng(3)
    y, jacobian, offsets = simulated_line(n=80)
    bad = random.choice(80, 17, replace=False)
    y[bad] += random.choice([-0.1, 0.1], 17)
    fitted = fitted_line(y, jacobian, offsets)
    by_code = {item.code: item.message for item in check_residuals(fitted, np.empty((80, 0)))}
    assert set(by_code) == {"new-runs"}
    count = count_outside(deletion_residuals(fitted), 75).count
    assert by_code["new-runs"].startswith(f"{count} of 80 runs lie outside the 90% interval of a new run")
    assert "chance explains about 8" in by_code["new-runs"]
    shared = replace(fitted, noise=replace(fitted.noise, trunk=np.arange(80) // 2))
    assert check_residuals(shared, np.empty((80, 0))) == []


def test_the_readme_study_misses_its_losses_near_the_optimum():
    message = messages(ParametricFitter(draws=0).fit(README_RUNS))["lack-of-fit"]
    assert "the 5 runs nearest to N_opt lie 1.1% below the law, the 5 furthest 0.3% above it" in message
    assert "fitter isoflop" in message


def test_a_profile_steeper_than_the_law_is_reported_with_its_size_and_side():
    for sign, words in ((1, ("below the law", "above it")), (-1, ("above the law", "below it"))):
        runs = [
            run.model_copy(
                update={
                    "loss": run.loss
                    * math.exp(sign * 0.012 * math.log(run.params / CHINCHILLA.n_opt(run.budget)) ** 2)
                }
            )
            for run in study(CHINCHILLA, BUDGETS, WIDE, sigma=0.002, seed=1)
        ]
        message = messages(ParametricFitter(draws=0).fit(runs))["lack-of-fit"]
        assert all(word in message for word in words)


def test_runs_on_the_law_raise_few_alarms():
    alarms = [
        set(messages(ParametricFitter(draws=0).fit(study(CHINCHILLA, BUDGETS, WIDE, sigma=0.01, seed=seed))))
        & {"lack-of-fit", "new-runs"}
        for seed in range(40)
    ]
    assert sum(map(bool, alarms)) <= 3


def test_exact_losses_and_few_runs_have_no_alarm():
    exact = ParametricFitter(draws=0).fit(study(CHINCHILLA, BUDGETS, WIDE))
    few = ParametricFitter(draws=0).fit(study(CHINCHILLA, BUDGETS[:3], (0.4, 1.0, 2.5), sigma=0.01))
    for fit in (exact, few):
        assert not {"lack-of-fit", "new-runs"} & set(messages(fit))
