"""Intervals from bootstrap draws."""

from __future__ import annotations

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.records import Interval


def draw_scale(dof: int, draws: int, random: np.random.Generator) -> Floats:
    """A factor sqrt(dof / chi2) per draw: the ratio of the true noise to its estimate."""
    scales: Floats = np.sqrt(dof / random.chisquare(max(dof, 1), draws))
    return scales


def interval(value: float, draws: Floats, level: float) -> Interval:
    """The central ``level`` of ``draws``, widened to include ``value``; no interval without draws."""
    if not len(draws):
        return Interval(value=value)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))
