"""Correlated residuals along a curve.

Residuals of ln L are an Ornstein-Uhlenbeck process in ln(step), the continuous form of AR(1) for rows at any
distances, plus white noise (Chatfield and Xing 2019, The Analysis of Time Series, sections 3.4 and 14.3). Curves
are independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from flops_fit_core.fitting.data import Floats

RANGES = np.array([0.01, 0.03, 0.08, 0.2, 0.5, 1.2, 3.0])
"""Correlation lengths in ln(step) that are compared."""
WHITE_SHARES = np.array([0.02, 0.1, 0.3, 0.6, 0.95])
"""Shares of the variance in white noise that are compared."""
SMALLEST = 1e-5
"""The smallest standard deviation of ln L: losses are written with four or five digits."""


@dataclass(frozen=True)
class CurveNoise:
    """The covariance of residuals of ln L along a curve."""

    deviation: float
    """Standard deviation of the correlated part."""
    length: float
    """Correlation length in ln(step)."""
    white: float
    """Standard deviation of the white part, per bin of rows."""

    @property
    def total(self) -> float:
        """Standard deviation of a residual."""
        return float(np.hypot(self.deviation, self.white))

    def covariance(self, first: Floats, second: Floats) -> Floats:
        """Of the correlated part, between two lists of ln(step)."""
        distance = np.abs(first[:, None] - second[None, :])
        return self.deviation**2 * np.exp(-distance / self.length)

    def matrix(self, log_steps: Floats) -> Floats:
        """Covariance of the residuals of one curve."""
        return self.covariance(log_steps, log_steps) + self.white**2 * np.eye(len(log_steps))


def estimate_noise(log_steps: Sequence[Floats], residuals: Sequence[Floats]) -> CurveNoise:
    """Maximum likelihood on a grid of correlation lengths and shares of white noise.

    Residuals beyond four robust standard deviations are moved to that limit.
    """
    pooled = np.concatenate(list(residuals))
    limit = 4 * max(1.4826 * float(np.median(np.abs(pooled))), SMALLEST)
    clipped = [np.clip(part, -limit, limit) for part in residuals]
    best, noise = np.inf, CurveNoise(SMALLEST, 0.1, SMALLEST)
    for length in RANGES:
        for share in WHITE_SHARES:
            shape = CurveNoise(float(np.sqrt(1 - share)), float(length), float(np.sqrt(share)))
            variance, value = _profile(shape, log_steps, clipped)
            if value < best:
                scale = float(np.sqrt(variance))
                best = value
                noise = CurveNoise(scale * shape.deviation, shape.length, scale * shape.white)
    return noise


def _profile(shape: CurveNoise, log_steps: Sequence[Floats], residuals: Sequence[Floats]) -> tuple[float, float]:
    """The most likely variance for a shape of covariance, and -2 ln(likelihood)."""
    square, log_determinant, count = 0.0, 0.0, 0
    for steps, part in zip(log_steps, residuals, strict=True):
        factor = np.linalg.cholesky(shape.matrix(steps))
        white = solve_triangular(factor, part, lower=True)
        square += float(white @ white)
        log_determinant += 2 * float(np.log(np.diag(factor)).sum())
        count += len(part)
    variance = max(square / count, SMALLEST**2)
    return variance, count * np.log(variance) + log_determinant + square / variance
