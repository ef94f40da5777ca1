"""The curve laws equal their published sums, gradients equal differences, and rows are averaged as stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from curve_samples import ANNEALED, PEAK, TRUTH, direct_annealing, direct_multi_power, rates

from flops_fit_core import FitError
from flops_fit_core.fitting import LearningRates, LossCurve, parse_schedule
from flops_fit_core.fitting.curves.changes import RateChanges
from flops_fit_core.fitting.curves.curve import BinnedCurve
from flops_fit_core.fitting.curves.laws import AnnealingLaw, CurveScale, MultiPowerLaw, find_law
from flops_fit_core.fitting.curves.noise import estimate_noise
from flops_fit_core.fitting.curves.solver import Problem

SCALE = CurveScale(peak=PEAK, updates=500.0, loss=3.0)

STEPS = np.array([160, 201, 333, 480, 482, 500, 639, 700, 800])
SCHEDULES = (
    "constant",
    "cosine",
    "linear",
    "wsd",
    "sqrt",
    "exponential",
    "drop",
    "cosine and drop",
    "cycles",
)


def evaluate(law, parameters, values, block):
    changes = RateChanges.of(LearningRates(values), STEPS, PEAK, block=block)
    return law.losses(law.scaled(parameters, SCALE), changes, SCALE)[0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_multi_power_law_equals_its_direct_double_sum(name):
    values = rates(name, 800, warmup=60)
    expected = direct_multi_power(values, STEPS)
    assert evaluate(MultiPowerLaw(), TRUTH, values, 0) == pytest.approx(expected, rel=1e-9)
    assert evaluate(MultiPowerLaw(), TRUTH, values, 1 / 8) == pytest.approx(expected, rel=5e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_annealing_law_equals_its_recursion(name):
    values = rates(name, 800, warmup=60)
    expected = direct_annealing(values, STEPS, ANNEALED)
    assert evaluate(AnnealingLaw(), ANNEALED, values, 0) == pytest.approx(expected, rel=1e-9)
    assert evaluate(AnnealingLaw(), ANNEALED, values, 1 / 8) == pytest.approx(expected, rel=5e-5)


@pytest.mark.parametrize(("law", "parameters"), [(MultiPowerLaw(), TRUTH), (AnnealingLaw(), ANNEALED)])
def test_gradients_equal_central_differences(law, parameters):
    changes = RateChanges.of(LearningRates(rates("cosine and drop", 800)), STEPS, PEAK)
    theta = law.scaled(parameters, SCALE)
    _, slopes = law.losses(theta, changes, SCALE)
    for column in range(len(theta)):
        step = np.zeros(len(theta))
        step[column] = 1e-6
        above, below = (law.losses(theta + sign * step, changes, SCALE)[0] for sign in (1, -1))
        assert slopes[:, column] == pytest.approx((above - below) / 2e-6, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("law", "parameters"), [(MultiPowerLaw(), TRUTH), (AnnealingLaw(), ANNEALED)])
def test_scaled_parameters_convert_back_to_published_parameters(law, parameters):
    assert law.published(law.scaled(parameters, SCALE), SCALE) == pytest.approx(parameters, rel=1e-12)


def test_residuals_of_the_robust_problem_have_the_gradient_of_the_huber_loss():
    random = np.random.default_rng(0)
    matrix, target = random.standard_normal((30, 3)), 5 * random.standard_normal(30)
    law = MultiPowerLaw()
    prior = law.prior(SCALE).independent([0.0, 1.0, 2.0], [math.inf, 1.0, 0.5])
    weights = random.uniform(0.1, 1, 30)
    problem = Problem(lambda theta: (matrix @ theta, matrix), target, weights, 0.7, prior)

    def objective(theta):
        ratio = np.abs(matrix @ theta - target) / 0.7
        huber = np.where(ratio <= 1.345, ratio**2 / 2, 1.345 * (ratio - 1.345 / 2))
        return (weights * huber).sum() + (theta[1] - 1) ** 2 / 2 + ((theta[2] - 2) / 0.5) ** 2 / 2

    theta = np.array([0.3, -0.2, 1.0])
    residuals, slopes = problem.residuals(theta)
    assert 0.5 * (residuals**2).sum() == pytest.approx(objective(theta), rel=1e-12)
    steps = 1e-6 * np.eye(3)
    expected = [(objective(theta + step) - objective(theta - step)) / 2e-6 for step in steps]
    assert slopes.T @ residuals == pytest.approx(expected, rel=1e-6)


def test_constant_stretches_have_no_nodes_and_a_drop_has_one():
    values = np.where(np.arange(100_000) < 60_000, PEAK, 0.1 * PEAK)
    changes = RateChanges.of(LearningRates(values), np.array([50_000, 60_001, 100_000]), PEAK)
    assert changes.evaluation.tolist() == [1, 2]
    assert changes.drop == pytest.approx([0.9, 0.9])
    assert np.exp(changes.log_sum) == pytest.approx([0.1, 4000.0])


def test_a_long_curve_with_many_rows_has_few_bins_and_bins_do_not_cross_a_jump():
    values = np.where(np.arange(200_000) < 100_000, PEAK, 0.1 * PEAK)
    steps = np.arange(1000, 200_001)
    curve = LossCurve("long", steps, 3 + 100 / steps, LearningRates(values))
    bins = BinnedCurve.of(curve)
    assert len(bins.steps) < 600
    edges = np.flatnonzero(bins.steps > 100_000)
    assert bins.steps[edges[:3]].tolist() == [100_001, 100_002, 100_003]
    assert np.exp(bins.log_losses) == pytest.approx(3 + 100 / bins.steps, rel=2e-5)
    assert bins.spans.sum() == pytest.approx(math.log(200), rel=0.02)


def test_noise_along_curves_is_recovered():
    from curve_samples import correlated_noise

    random = np.random.default_rng(1)
    steps = [np.log(np.linspace(1000, 40_000, 200)) for _ in range(12)]
    noise = estimate_noise(steps, [correlated_noise(random, at, 2e-3, 0.5, 5e-4) for at in steps])
    assert noise.deviation == pytest.approx(2e-3, rel=0.35)
    assert noise.length == 0.5
    assert noise.white == pytest.approx(5e-4, rel=0.5)


def test_rates_between_rows_are_linear_and_a_jump_is_at_the_row_that_shows_it():
    steps = np.array([10, 20, 30, 40, 50])
    ramp = LearningRates.from_rows(steps, np.array([1.0, 1.0, 0.8, 0.4, 0.4]))
    assert ramp.values[25] == pytest.approx(0.9)
    jump = LearningRates.from_rows(steps, np.array([1.0, 1.0, 0.3, 0.3, 0.3]), total_steps=60)
    assert jump.values[29] == 1.0
    assert jump.values[30] == 0.3
    assert jump.values[59] == 0.3


def test_rates_before_the_first_row_rise_from_zero():
    schedule = LearningRates.from_rows(np.array([100, 200, 300]), np.array([1.0, 1.0, 1.0]))
    assert schedule.values[:100] == pytest.approx(np.arange(100) / 100)
    flat = LearningRates.from_rows(np.array([1, 200, 300]), np.array([1.0, 1.0, 1.0]))
    assert flat.values == pytest.approx(np.ones(300))


@pytest.mark.parametrize(
    ("text", "step", "rate"),
    [
        ("constant:steps=100,peak=2", 99, 2.0),
        ("linear:steps=101,peak=1,warmup=1", 51, 0.5),
        ("cosine:steps=100,peak=1,final=0.1", 50, 0.55),
        ("wsd:steps=100,peak=1,decay=0.5", 75, 0.5),
        ("wsd:steps=100,peak=1,decay=0.5,power=0.5", 75, 1 - math.sqrt(0.5)),
        ("cosine:steps=100,warmup=10", 5, 0.5),
    ],
)
def test_a_schedule_in_a_text_has_the_rates_of_its_formula(text, step, rate):
    assert parse_schedule(text).rates().values[step] == pytest.approx(rate)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cosin:steps=100", "Did you mean 'cosine'"),
        ("cosine:step=100", "'step=100' is not a valid value"),
        ("cosine:steps=ten", "'steps=ten' is not a valid value"),
        ("cosine:final=2", "final must be from 0 to 1"),
        ("wsd:steps=100,peak=-1", "peak must be above 0"),
    ],
)
def test_an_invalid_schedule_is_refused_with_the_syntax(text, part):
    with pytest.raises(FitError, match=part):
        parse_schedule(text)


def test_a_schedule_without_steps_is_refused():
    with pytest.raises(FitError, match="cosine:steps=24000"):
        parse_schedule("cosine:final=0.1").rates()


@pytest.mark.parametrize(
    ("steps", "losses", "part"),
    [
        ([10, 10], [3.0, 3.0], "must increase"),
        ([0, 10], [3.0, 3.0], "from 1"),
        ([10, 20], [3.0, -1.0], "positive"),
        ([10, 200], [3.0, 3.0], "schedule has 100 steps"),
        ([10], [3.0, 3.0], "equal length"),
    ],
)
def test_an_impossible_curve_is_refused(steps, losses, part):
    with pytest.raises(FitError, match=part):
        LossCurve("x", np.array(steps), np.array(losses), LearningRates(np.ones(100)))


def test_impossible_rates_are_refused():
    for values in ([], [[1.0]], [math.nan], [-1.0, 1.0], [0.0, 0.0]):
        with pytest.raises(FitError):
            LearningRates(np.array(values))


def test_an_unknown_law_is_refused_with_the_names():
    with pytest.raises(FitError, match="multi-power, annealing"):
        find_law("chinchilla")
