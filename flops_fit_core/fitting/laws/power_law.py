"""Power laws: a weighted line in logarithms, and a power law with an irreducible term."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats

_GAMMAS = np.geomspace(0.005, 2.0, 40)
_GOLDEN = (np.sqrt(5) - 1) / 2


def fit_line(x: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares of y = intercept + slope x.

    ``x`` and ``weights`` have shape (n,), ``y`` (..., n); both results have shape (...).
    """
    total = weights.sum()
    centre = weights @ x / total
    mean = y @ weights / total
    slope = y @ (weights * (x - centre)) / (weights @ (x - centre) ** 2)
    return mean - slope * centre, slope


@dataclass(frozen=True)
class Saturating:
    """y = E + exp(ln_k) C^-gamma, one entry per fit."""

    e: Floats
    ln_k: Floats
    gamma: Floats
    rss: Floats
    at_bound: Floats
    """1.0 if E is 0 or gamma lies at an end of the search range."""


def fit_saturating(ln_flops: Floats, y: Floats) -> Saturating:
    """Least squares of the relative error of y = E + K C^-gamma with E and K not negative.

    ``ln_flops`` has shape (n,), ``y`` (draws, n). For each gamma, E and K solve a linear problem (variable
    projection, Golub and Pereyra 1973), so a fit is a search in one dimension, vectorised over draws.
    """
    centre = ln_flops.mean()
    x = ln_flops - centre

    def rss(gamma: Floats) -> Floats:
        return _project(x, y, gamma)[2]

    rss_by_gamma = np.stack([rss(np.full(len(y), gamma)) for gamma in _GAMMAS])
    best = np.clip(np.argmin(rss_by_gamma, axis=0), 1, len(_GAMMAS) - 2)
    low, high = _GAMMAS[best - 1], _GAMMAS[best + 1]
    for _ in range(36):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        smaller = rss(left) < rss(right)
        low, high = np.where(smaller, low, left), np.where(smaller, right, high)
    gamma = (low + high) / 2
    e, k, least_rss = _project(x, y, gamma)
    at_bound = (e <= 0) | (gamma <= _GAMMAS[1]) | (gamma >= _GAMMAS[-2])
    return Saturating(e, np.log(np.maximum(k, 1e-300)) + gamma * centre, gamma, least_rss, at_bound.astype(float))


def _project(x: Floats, y: Floats, gamma: Floats) -> tuple[Floats, Floats, Floats]:
    """Best E, K >= 0 per gamma, and the sum of squared relative errors."""
    constant, power = 1 / y, np.exp(-gamma[:, None] * x) / y
    aa, ab, bb = (constant**2).sum(1), (constant * power).sum(1), (power**2).sum(1)
    a, b = constant.sum(1), power.sum(1)
    determinant = aa * bb - ab**2
    safe = np.where(determinant > 1e-14 * aa * bb, determinant, np.inf)
    e, k = (a * bb - b * ab) / safe, (b * aa - a * ab) / safe
    e, k = np.where(k < 0, a / aa, e), np.where(e < 0, b / bb, k)
    e, k = np.maximum(e, 0), np.maximum(k, 0)
    return e, k, ((1 - e[:, None] * constant - k[:, None] * power) ** 2).sum(1)
