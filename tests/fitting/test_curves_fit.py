"""Fits of curves with a known truth, forecasts of unfinished runs, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from curve_samples import ANNEALED, PEAK, TRUTH, direct_annealing, rates, simulate, true_losses

from flops_fit_core import FitError
from flops_fit_core.fitting import (
    LearningRates,
    LossCurve,
    final_losses,
    fit_curves,
    forecast_loss,
)

TRAINING = ("constant", "cosine", "drop")
OTHERS = ("wsd", "linear", "sqrt")


def noiseless(name, steps=6000, rows=60):
    values = rates(name, steps)
    at = np.unique(np.linspace(steps * 0.05, steps, rows).astype(int))
    return LossCurve(name, at, true_losses(values, at), LearningRates(values))


def test_a_fit_to_three_schedules_predicts_others():
    fit = fit_curves([noiseless(name) for name in TRAINING])
    for name in OTHERS:
        curve = noiseless(name, steps=9000)
        assert fit.losses(curve.rates, curve.steps) == pytest.approx(curve.losses, rel=5e-4)
    assert fit.parameters["L0"] == pytest.approx(TRUTH["L0"], rel=0.01)
    assert fit.parameters["B"] == pytest.approx(TRUTH["B"], rel=0.1)


def test_a_fit_recovers_the_annealing_law():
    def curve(name):
        values = rates(name, 3000)
        steps = np.arange(200, 3001, 100)
        return LossCurve(name, steps, direct_annealing(values, steps, ANNEALED), LearningRates(values))

    fit = fit_curves([curve(name) for name in TRAINING], "annealing")
    assert fit.parameters["lambda"] == pytest.approx(ANNEALED["lambda"], abs=0.002)
    wsd = curve("wsd")
    assert fit.losses(wsd.rates, wsd.steps) == pytest.approx(wsd.losses, rel=5e-4)


def test_a_fit_does_not_depend_on_the_unit_of_the_learning_rate():
    curves = [simulate(np.random.default_rng(0), name) for name in TRAINING]
    scaled = [replace(curve, rates=LearningRates(100 * curve.rates.values)) for curve in curves]
    first, second = fit_curves(curves), fit_curves(scaled)
    steps = [1000, 6000]
    assert second.losses(scaled[1].rates, steps) == pytest.approx(first.losses(curves[1].rates, steps), rel=1e-6)


def test_one_outlier_moves_a_prediction_by_less_than_its_interval():
    curves = [simulate(np.random.default_rng(3), name) for name in TRAINING]
    losses = curves[1].losses.copy()
    losses[30] *= 1.2
    spoiled = [curves[0], replace(curves[1], losses=losses), curves[2]]
    target = LearningRates(rates("wsd", 6000))
    clean, robust = (fit_curves(item).losses(target, [6000])[0] for item in (curves, spoiled))
    assert robust == pytest.approx(clean, rel=2e-3)


def test_intervals_of_another_schedule_cover_at_their_level():
    inside, target = [], rates("wsd", 6000)
    truth = true_losses(target, np.array([6000]))[0]
    for seed in range(25):
        random = np.random.default_rng(seed)
        fit = fit_curves([simulate(random, name, rows=30) for name in TRAINING])
        interval = fit.predict(LearningRates(target), [6000])[0]
        new_run = truth * np.exp(2e-3 * random.standard_normal())
        inside.append(interval.low < new_run < interval.high)
    assert np.mean(inside) >= 0.8


def test_forecasts_of_an_unfinished_run_cover_and_are_narrow_with_other_curves():
    inside, widths = [], []
    for seed in range(25):
        random = np.random.default_rng(100 + seed)
        others = fit_curves([simulate(random, name, rows=30) for name in ("cosine", "drop")])
        run = simulate(random, "wsd", rows=40)
        forecast = forecast_loss(run.first(3000), others)
        inside.append(forecast.loss.low < run.losses[-1] < forecast.loss.high)
        widths.append((forecast.loss.high - forecast.loss.low) / (2 * forecast.loss.value))
    assert np.mean(inside) >= 0.8
    assert np.median(widths) < 0.01


def test_a_forecast_from_the_curve_alone_covers():
    inside = []
    for seed in range(25):
        random = np.random.default_rng(200 + seed)
        run = simulate(random, "cosine", rows=60)
        forecast = forecast_loss(run.first(3600))
        assert not forecast.others
        assert forecast.decay_seen < forecast.decay_planned
        inside.append(forecast.loss.low < run.losses[-1] < forecast.loss.high)
    assert np.mean(inside) >= 0.8


def test_the_interval_of_a_forecast_shrinks_as_the_run_advances():
    run = simulate(np.random.default_rng(5), "cosine", rows=120)
    widths = []
    for steps in (2400, 3600, 5000):
        loss = forecast_loss(run.first(steps)).loss
        widths.append(loss.high - loss.low)
    assert widths[0] > widths[1] > widths[2]


def test_a_forecast_is_refused_where_no_decay_was_seen():
    run = simulate(np.random.default_rng(6), "wsd", rows=60).first(3000)
    with pytest.raises(
        FitError, match=r"lowers the learning rate by 90% .* show 0%.*Add the curve of a run.*step 49"
    ):
        forecast_loss(run)
    constant = fit_curves([simulate(np.random.default_rng(7), "constant")])
    with pytest.raises(FitError, match="the curve and the other curves"):
        forecast_loss(run, constant)


def test_a_constant_schedule_is_forecast_from_its_curve_alone():
    run = simulate(np.random.default_rng(8), "constant", rows=60)
    loss = forecast_loss(run.first(3000)).loss
    assert loss.low < run.losses[-1] < loss.high
    assert loss.high - loss.low < 0.05 * loss.value


def test_too_few_losses_are_refused_with_advice():
    run = simulate(np.random.default_rng(9), "cosine", rows=5)
    with pytest.raises(FitError, match="a fit needs 8"):
        fit_curves([run])
    with pytest.raises(FitError, match="evaluate more often"):
        forecast_loss(run.first(5000))
    values = rates("cosine", 6000)
    warming = LossCurve("early", np.array([50, 100]), np.array([6.0, 5.0]), LearningRates(values))
    with pytest.raises(FitError, match="where the learning rate reaches its peak"):
        forecast_loss(warming)


def test_curves_of_the_same_name_are_refused():
    run = noiseless("cosine")
    with pytest.raises(FitError, match="same name"):
        fit_curves([run, run])


def test_steps_outside_the_schedule_are_refused():
    fit = fit_curves([noiseless("cosine")])
    with pytest.raises(FitError, match="from 1 to the 100 steps"):
        fit.losses(LearningRates(PEAK * np.ones(100)), [101])


def test_final_losses_smooth_white_noise_and_forecast_unfinished_runs():
    random = np.random.default_rng(10)
    curves = []
    for name in TRAINING:
        values = rates(name, 6000)
        steps = np.arange(300, 6001, 20)
        losses = true_losses(values, steps) * np.exp(0.01 * random.standard_normal(len(steps)))
        curves.append(LossCurve(name, steps, losses, LearningRates(values)))
    unfinished = simulate(random, "wsd").first(3000)
    finals = {item.name: item for item in final_losses([*curves, unfinished])}
    for name in TRAINING:
        truth = true_losses(rates(name, 6000), np.array([6000]))[0]
        assert finals[name].standard_error < 0.3 * 0.01 * truth
        assert abs(finals[name].loss - truth) < 4 * max(finals[name].standard_error, 0.001 * truth)
    assert finals["wsd"].forecast.others == TRAINING
    assert finals["wsd"].last_step < finals["wsd"].steps == 6000


def test_final_losses_state_why_a_run_has_no_forecast():
    (final,) = final_losses([simulate(np.random.default_rng(11), "wsd").first(3000)])
    assert final.loss is None
    assert "effect of the decay on the loss is unknown" in final.reason


def test_curves_of_other_groups_do_not_share_a_law():
    random = np.random.default_rng(12)
    other = replace(simulate(random, "cosine"), group="large")
    run = replace(simulate(random, "wsd").first(3000), group="small")
    final = final_losses([other, run])[1]
    assert final.loss is None
