"""Residual bootstrap that stays honest with few runs.

Residuals are divided by sqrt(1 - leverage), so that they have the errors' variance (Davison and Hinkley
1997, section 6.3), pooled, and scaled to the unbiased estimate of that variance. Every draw then divides
them by its own sqrt(chi2 / dof): with few degrees of freedom the noise level itself is uncertain, and what
comes out for a linear statistic is Student's t interval instead of a normal one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.records import Interval


@dataclass(frozen=True)
class Noise:
    """What the residuals say about the noise of one run."""

    pool: Floats
    """Leverage-corrected residuals, centred, with the root mean square ``sigma``."""
    sigma: float
    dof: int


def estimate_noise(residuals: Floats, leverage: Floats, dof: int) -> Noise:
    """``residuals`` and ``leverage`` have shape (n,); ``dof`` is n minus the fitted parameters.

    Points that their fit passes through exactly (leverage 1) tell nothing and are left out.
    """
    usable = leverage < 1 - 1e-6
    if dof < 1 or not usable.any():
        return Noise(np.zeros(1), 0.0, 0)
    pool = residuals[usable] / np.sqrt(1 - leverage[usable])
    pool = pool - pool.mean()
    sigma = float(np.sqrt(np.sum(residuals**2) / dof))
    size = float(np.sqrt(np.mean(pool**2)))
    return Noise(pool * (sigma / size) if size > 0 else pool, sigma, dof)


def draw_noise(noise: Noise, shape: tuple[int, int], random: np.random.Generator) -> Floats:
    """Errors of ``shape`` (draws, runs)."""
    picked = noise.pool[random.integers(len(noise.pool), size=shape)]
    out: Floats = picked * unknown_scale(noise.dof, shape[0], random)[:, None]
    return out


def unknown_scale(dof: int, draws: int, random: np.random.Generator) -> Floats:
    """One factor sqrt(dof / chi2) a draw: how far the true noise may lie from its estimate."""
    out: Floats = np.sqrt(dof / random.chisquare(max(dof, 1), draws))
    return out


def interval(value: float, draws: Floats, level: float) -> Interval:
    """The central ``level`` of ``draws``, widened to hold ``value``. No draws: no interval."""
    if not len(draws):
        return Interval(value=value)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))
