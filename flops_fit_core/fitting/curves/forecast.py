"""Forecasts the final loss of a run that has not ended, from its losses so far and its planned schedule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.curves.changes import RateChanges
from flops_fit_core.fitting.curves.curve import LossCurve, decay_planned, decay_seen
from flops_fit_core.fitting.curves.fit import (
    LAW_ERROR,
    LEAST_ROWS,
    CurveData,
    CurveFit,
    describe_fit,
    fit_parameters,
    log_losses,
    make_problem,
)
from flops_fit_core.fitting.curves.laws import Prior, find_law
from flops_fit_core.fitting.curves.solver import minimise
from flops_fit_core.fitting.distributions import normal_quantile
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.records import Interval

NO_DECAY = 0.05
"""A schedule that falls by less than this share of its peak has no decay."""
RUN_WIDTHS = (0.01, 0.03, 0.02)
"""Standard deviations of ln L0, ln A and a between runs of one size: the first part of a run may differ from the
others, for example by its seed or its data order, but the decay term is common."""


@dataclass(frozen=True)
class CurveForecast:
    """The forecast of a run's final loss."""

    name: str
    loss: Interval
    """Loss after the last update of the schedule, in nats."""
    last_step: int
    """Step of the last loss that was used."""
    steps: int
    """Updates of the complete schedule."""
    decay_seen: float
    """Fall of the learning rate below its peak up to ``last_step``, as a share of the peak."""
    decay_planned: float
    """The same, over the complete schedule."""
    others: tuple[str, ...]
    """The curves that determine the decay term; empty if it comes from the run alone."""


@convert_numerical_errors
def forecast_loss(
    curve: LossCurve, others: CurveFit | None = None, *, law: str = "multi-power", level: float = 0.9
) -> CurveForecast:
    """The final loss of an unfinished run, after the last update of ``curve.rates``.

    With ``others``, their law is the prior, and the run's losses update it: L0, A and a may differ slightly
    between runs, and the decay term is common. Without, the law is fitted to this curve alone.

    The interval holds the final loss of this run. It includes parameter uncertainty with residuals that are
    correlated along the curve, the error of the law, and noise.

    Args:
        curve: The losses so far, and the complete planned schedule.
        others: A fit to curves of the same model size, data and batch size.
        law: The law for a curve alone; ``others`` has its own.
        level: Level of the interval.

    Raises FitError, with advice, if the schedule has a decay and neither the curve nor the others have seen any,
    or if the curve has too few losses.
    """
    curve.after_warmup()
    _check_decay(curve, others)
    if others is None:
        data = CurveData.of([curve])
        chosen = find_law(law)
        if len(data.spans) < LEAST_ROWS:
            raise FitError(_describe_few_rows(curve, len(data.spans)))
        prior = chosen.prior(data.scale)
        theta, noise = fit_parameters(data, chosen, prior)
    else:
        data = CurveData.of([curve], others.scale)
        chosen, noise = others.law, others.noise
        prior = _prior_from(others)
        theta = minimise(make_problem(data, chosen, prior, noise), [others.theta])
    fit = describe_fit(data, chosen, theta, noise, prior, 0.0)
    final = np.array([curve.rates.steps])
    changes = RateChanges.of(curve.rates, final, data.scale.peak)
    value, slopes = log_losses(chosen, theta, changes, data.scale)
    variance = float(slopes[0] @ fit.covariance @ slopes[0]) + noise.total**2 + _law_variance(curve)
    half = float(normal_quantile(0.5 + level / 2)) * np.sqrt(variance)
    return CurveForecast(
        name=curve.name,
        loss=Interval(
            value=float(np.exp(value[0])), low=float(np.exp(value[0] - half)), high=float(np.exp(value[0] + half))
        ),
        last_step=curve.last_step,
        steps=curve.rates.steps,
        decay_seen=decay_seen(curve),
        decay_planned=decay_planned(curve),
        others=() if others is None else others.names,
    )


def _prior_from(others: CurveFit) -> Prior:
    covariance = others.covariance.copy()
    first = np.arange(len(RUN_WIDTHS))
    covariance[first, first] += np.square(RUN_WIDTHS)
    return Prior(others.theta, np.linalg.cholesky(np.linalg.inv(covariance)).T)


def _law_variance(curve: LossCurve) -> float:
    """Variance of the law's error at the end of the schedule, given its error at the last loss."""
    distance = np.log(curve.rates.steps / curve.last_step)
    return LAW_ERROR.deviation**2 * float(-np.expm1(-2 * distance / LAW_ERROR.length))


def _check_decay(curve: LossCurve, others: CurveFit | None) -> None:
    planned, seen = decay_planned(curve), decay_seen(curve)
    if planned < NO_DECAY or seen >= NO_DECAY or (others is not None and others.decay_seen >= NO_DECAY):
        return
    peak = curve.rates.peak
    falls = np.maximum.accumulate(curve.rates.values) - curve.rates.values
    step = int(np.argmax(falls >= 2 * NO_DECAY * peak)) if planned >= 2 * NO_DECAY else curve.rates.steps
    where = "the curve and the other curves" if others is not None else "the curve"
    raise FitError(
        f"{curve.name}: the schedule lowers the learning rate by {planned:.0%} of its peak, and {where} up to "
        f"step {curve.last_step} show {seen:.0%}, so the effect of the decay on the loss is unknown. Add the "
        f"curve of a run of this size with a decay, or forecast again after step {step}"
    )


def _describe_few_rows(curve: LossCurve, rows: int) -> str:
    return (
        f"{curve.name}: {rows} losses after the warmup (rows within 1/32 of a step count once), and a forecast "
        f"from a curve alone needs {LEAST_ROWS}: evaluate more often, or add curves of other runs of this size"
    )
