"""Intervals of the law: the jackknife over cells, or the residuals if there are too few cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_core.fitting.distributions import t_quantile
from flops_fit_core.records import Interval


def law_interval(
    value: float,
    weights: Sequence[float],
    refits: Sequence[Sequence[float]],
    covariance: Sequence[Sequence[float]],
    degrees_of_freedom: int,
    level: float,
) -> Interval:
    """The interval of a linear combination of a law's parameters, by Student's t.

    The variance is the jackknife's over cells, (G - 1) / G times the sum of squares of the fits that leave out one
    of G cells each. It covers noise of single runs and cells that deviate from the law. Without refits it comes
    from ``covariance``, the covariance by the residuals, which covers noise of single runs only.

    Args:
        value: The combination of the estimates.
        weights: Its coefficients, shape (parameters,).
        refits: Parameters of the fits without one cell, shape (cells, parameters), or empty.
        covariance: Shape (parameters, parameters), or empty.
        degrees_of_freedom: Those of Student's t. Below 1: no interval.
        level: 0.9 for 90%.
    """
    if degrees_of_freedom < 1 or not (len(refits) or len(covariance)):
        return Interval(value=value)
    combination = np.asarray(weights)
    if len(refits):
        values = np.asarray(refits) @ combination
        variance = (len(values) - 1) / len(values) * float(np.square(values - values.mean()).sum())
    else:
        variance = float(combination @ np.asarray(covariance) @ combination)
    half_width = float(t_quantile((1 + level) / 2, degrees_of_freedom)) * variance**0.5
    return Interval(value=value, low=value - half_width, high=value + half_width)
