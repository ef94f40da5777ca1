"""Optima at many budgets at once equal those one at a time."""

import itertools
import math

import numpy as np
import pytest
from surfaces import CHINCHILLA, study

from flops_fit_core import FitError
from flops_fit_core.fitting import AverageFitter, IsoflopFitter, LawFitter, optimum
from flops_fit_core.fitting.laws.optimum_solver import OptimumSolver

BUDGETS = [float(flops) for flops in np.geomspace(1e17, 1e23, 9)]
FITTERS = {
    "average": AverageFitter(draws=60),
    "chinchilla": LawFitter(law="chinchilla", draws=60),
    "farseer": LawFitter(law="farseer", draws=60),
    "isoflop": IsoflopFitter(draws=60),
    "without draws": AverageFitter(draws=0),
}


@pytest.fixture(scope="module")
def fits():
    runs = study(CHINCHILLA, (1e18, 1e19, 1e20), np.geomspace(1 / 6, 6, 8), sigma=0.004)
    return {name: fitter.fit(runs) for name, fitter in FITTERS.items()}


def ends(prediction):
    """Value and interval ends of N, D and L, of the law and of a new run."""
    intervals = (prediction.params, prediction.tokens, prediction.loss, prediction.new_run)
    return [
        end for interval in intervals if interval for end in (interval.value, interval.low, interval.high) if end
    ]


@pytest.mark.parametrize("name", FITTERS)
def test_many_optima_equal_single_optima(fits, name):
    expected = [optimum(fits[name], flops) for flops in BUDGETS]
    for prediction, single in zip(OptimumSolver(fits[name]).many(BUDGETS), expected, strict=True):
        assert ends(prediction) == pytest.approx(ends(single), rel=1e-6)
        assert (prediction.notes, prediction.outside) == (single.notes, single.outside)


@pytest.mark.parametrize("name", [name for name in FITTERS if name != "isoflop"])
@pytest.mark.parametrize("ratio", [1e-3, 0.3, 30, 1000])
def test_optima_that_pay_for_inference_equal_single_optima(fits, name, ratio):
    serving = [ratio * optimum(fits[name], flops).tokens.value for flops in BUDGETS]
    predictions = OptimumSolver(fits[name]).many(BUDGETS, serving)
    for prediction, flops, tokens in zip(predictions, BUDGETS, serving, strict=True):
        assert ends(prediction) == pytest.approx(ends(optimum(fits[name], flops, tokens)), rel=1e-6)


@pytest.mark.parametrize("ratio", [1, 100, 1e4, 1e6])
def test_a_budget_that_inference_dominates_has_the_lowest_loss_of_a_fine_scan(fits, ratio):
    """With D_inf far above D, the optimum lies within a small fraction of ln N below the largest possible N."""
    fit, flops = fits["chinchilla"], 1e21
    law = fit.law.parameters
    serving = ratio * optimum(fit, flops).tokens.value
    prediction = optimum(fit, flops, serving)
    tokens = np.geomspace(1e-6, 1e6, 400_001) * prediction.tokens.value
    params = flops / (6 * tokens + 2 * serving)
    loss = law["E"] + law["A"] / params ** law["alpha"] + law["B"] / tokens ** law["beta"]
    assert prediction.tokens.value == pytest.approx(tokens[np.argmin(loss)], rel=1e-3)
    assert prediction.loss.value == pytest.approx(loss.min(), rel=1e-9)


def test_the_order_of_budgets_does_not_matter(fits):
    solver = OptimumSolver(fits["average"])
    for budgets in itertools.permutations(BUDGETS[::4]):
        for prediction, flops in zip(solver.many(budgets), budgets, strict=True):
            assert ends(prediction) == pytest.approx(ends(optimum(fits["average"], flops)), rel=1e-6)
    assert solver(3e19).params.value == pytest.approx(optimum(fits["average"], 3e19).params.value, rel=1e-6)


@pytest.mark.parametrize("flops", [0, -1e20, math.inf, math.nan])
def test_a_budget_that_is_no_positive_number_is_refused(fits, flops):
    with pytest.raises(FitError, match="positive number of training FLOPs"):
        OptimumSolver(fits["average"]).many([1e20, flops])
