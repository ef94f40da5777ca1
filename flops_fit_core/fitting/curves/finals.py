"""Final losses of a table of curves, with standard errors: the data of a fit over runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.curves.curve import LossCurve
from flops_fit_core.fitting.curves.fit import CurveData, CurveFit, fit_curves
from flops_fit_core.fitting.curves.forecast import CurveForecast, forecast_loss
from flops_fit_core.fitting.curves.laws import find_law
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors

QUANTILE_90 = 1.6449
"""Half the width of a 90% interval in standard deviations."""


@dataclass(frozen=True)
class FinalLoss:
    """The loss of a run at the end of its schedule."""

    name: str
    group: str
    steps: int
    """Updates of the complete schedule."""
    last_step: int
    """Step of the last loss."""
    last_loss: float
    """The last loss, as measured."""
    loss: float | None
    """Nats; None if it cannot be forecast."""
    standard_error: float | None
    """In nats: of the smoothed last losses, or of the forecast. Without the difference between seeds. None if the
    curve has too few losses."""
    forecast: CurveForecast | None = None
    """The forecast of an unfinished run."""
    reason: str = ""
    """Why there is no forecast."""


@convert_numerical_errors
def final_losses(
    curves: Sequence[LossCurve],
    *,
    fits: Mapping[str, CurveFit] | None = None,
    law: str = "multi-power",
    level: float = 0.9,
) -> list[FinalLoss]:
    """The final loss of every curve: measured and smoothed if the run is finished, otherwise forecast.

    A finished run's loss is the best linear prediction from all its losses: the law of its group, plus the
    correlated residual at the end, without white noise. An unfinished run is forecast with the finished curves of
    its group (``LossCurve.group``) if they show a decay, otherwise from its own curve.

    Args:
        curves: Curves of one or several groups.
        fits: Fits by group, as :func:`fit_groups` returns; by default of these curves.
        law: The curve law.
        level: Level of the forecasts' intervals.
    """
    fits = fit_groups(curves, law) if fits is None else fits
    return [
        _smooth_end(curve, fits.get(curve.group))
        if curve.is_finished
        else _forecast(curve, fits.get(curve.group), law, level)
        for curve in curves
    ]


def fit_groups(curves: Sequence[LossCurve], law: str = "multi-power") -> dict[str, CurveFit]:
    """A fit of the finished curves of each group. Groups without one, or with too few losses, have no fit.

    Raises FitError for an unknown law.
    """
    find_law(law)
    groups: dict[str, list[LossCurve]] = {}
    for curve in curves:
        if curve.is_finished:
            groups.setdefault(curve.group, []).append(curve)
    fits = {}
    for group, members in groups.items():
        try:
            fits[group] = fit_curves(members, law)
        except FitError:
            continue
    return fits


def _smooth_end(curve: LossCurve, fit: CurveFit | None) -> FinalLoss:
    measured = float(curve.losses[-1])
    last, error = measured, None
    if fit is not None:
        data, noise = CurveData.of([curve], fit.scale), fit.noise
        steps = data.log_steps[0]
        fitted = data.model(fit.law, fit.theta)[0]
        weights = np.linalg.solve(noise.matrix(steps), noise.covariance(steps, steps[-1:]))[:, 0]
        last = float(np.exp(fitted[-1] + weights @ (data.log_losses - fitted)))
        variance = noise.deviation**2 - float(weights @ noise.covariance(steps, steps[-1:])[:, 0])
        error = last * float(np.sqrt(max(variance, 0.0)))
    return FinalLoss(curve.name, curve.group, curve.rates.steps, curve.last_step, measured, last, error)


def _forecast(curve: LossCurve, others: CurveFit | None, law: str, level: float) -> FinalLoss:
    last = float(curve.losses[-1])
    try:
        forecast = forecast_loss(curve, others, law=law, level=level)
        ninety = forecast if level == 0.9 else forecast_loss(curve, others, law=law)
    except FitError as error:
        return FinalLoss(
            curve.name, curve.group, curve.rates.steps, curve.last_step, last, None, None, reason=str(error)
        )
    interval = ninety.loss
    assert interval.low is not None
    assert interval.high is not None
    return FinalLoss(
        curve.name,
        curve.group,
        curve.rates.steps,
        curve.last_step,
        last,
        interval.value,
        (interval.high - interval.low) / (2 * QUANTILE_90),
        forecast,
    )
