"""Least squares with Gaussian priors on the parameters, vectorised over fits, by Levenberg and Marquardt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats, Ints

Model = Callable[[Floats], tuple[Floats, Floats]]
"""Parameters (fits, p) -> values (fits, n) and their derivatives (fits, n, p)."""

REFIT_STEPS = 40
"""Most steps of a refit, which starts at the fit."""


@dataclass(frozen=True)
class ParameterLimits:
    """Bounds and priors of the parameters, each of shape (p,)."""

    low: Floats
    high: Floats
    mean: Floats
    """Mean of a parameter's prior; ignored if the parameter has none."""
    sd: Floats
    """Standard deviation of a parameter's prior; infinity for none."""

    def draw_means(self, count: int, random: np.random.Generator) -> Floats:
        """Means drawn from the priors, shape (count, p), so that refits treat a prior as one more measurement."""
        spread = np.where(np.isfinite(self.sd), self.sd, 0.0)
        drawn: Floats = self.mean + spread * random.standard_normal((count, len(self.mean)))
        return drawn


@dataclass(frozen=True)
class Minimum:
    """Solutions, one per row of the start."""

    theta: Floats
    value: Floats
    """Weighted sum of squares plus penalty, shape (fits,)."""


def minimise(
    model: Model,
    start: Floats,
    target: Floats,
    limits: ParameterLimits,
    weights: Floats,
    noise: float,
    steps: int = 200,
    means: Floats | None = None,
) -> Minimum:
    """Minimise sum w (y - f)^2 + noise^2 sum ((theta - mean) / sd)^2 from every row of ``start``.

    Args:
        model: The function with its derivatives.
        start: Shape (fits, p).
        target: y, shape (n,) or (fits, n).
        limits: Bounds and priors.
        weights: w, shape (n,).
        noise: Standard deviation of y at weight 1, which scales the priors.
        steps: Most steps per fit.
        means: Means of the priors per fit, shape (fits, p). None: those of ``limits``.
    """
    theta = np.clip(start, limits.low, limits.high)
    target = np.broadcast_to(target, (len(theta), target.shape[-1]))
    means = np.broadcast_to(limits.mean if means is None else means, theta.shape)
    precision = noise**2 / limits.sd**2

    def objective(theta: Floats, rows: Ints) -> Floats:
        with np.errstate(all="ignore"):
            total = (weights * (target[rows] - model(theta)[0]) ** 2).sum(axis=1)
            total = total + (precision * (theta - means[rows]) ** 2).sum(axis=1)
        return np.where(np.isfinite(total), total, np.inf)

    value = objective(theta, np.arange(len(theta)))
    damping, is_live = np.full(len(theta), 1e-2), np.isfinite(value)
    for _ in range(steps):
        live = np.flatnonzero(is_live)
        if not len(live):
            break
        values, jacobian = model(theta[live])
        weighted = jacobian * weights[:, None]
        downhill = np.einsum("fnp,fn->fp", weighted, target[live] - values) - precision * (
            theta[live] - means[live]
        )
        normal = weighted.transpose(0, 2, 1) @ jacobian + precision[:, None] * np.eye(theta.shape[1])
        step, gain = _step(theta[live], downhill, normal, limits, damping[live])
        moved = np.clip(theta[live] + step, limits.low, limits.high)
        reached = objective(moved, live)
        is_better = reached < value[live]
        theta[live[is_better]], value[live[is_better]] = moved[is_better], reached[is_better]
        damping[live] = np.where(is_better, np.maximum(damping[live] / 8, 1e-12), damping[live] * 6)
        is_live[live[(gain <= 1e-12 * value[live]) | (damping[live] > 1e12)]] = False
    return Minimum(theta, value)


def _step(
    theta: Floats, downhill: Floats, normal: Floats, limits: ParameterLimits, damping: Floats
) -> tuple[Floats, Floats]:
    """A damped step and its predicted reduction of the value. Parameters at a bound stay there."""
    at_bound = ((theta <= limits.low) & (downhill < 0)) | ((theta >= limits.high) & (downhill > 0))
    downhill = np.where(at_bound, 0.0, downhill)
    normal = np.where(at_bound[:, :, None] | at_bound[:, None, :], 0.0, normal)
    scale = 1 / np.sqrt(np.maximum(np.einsum("fpp->fp", normal), 1e-300))
    scale = np.where(at_bound, 1.0, scale)
    scaled = normal * scale[:, :, None] * scale[:, None, :]
    diagonal = (damping[:, None] + 1e-12 + at_bound)[:, :, None] * np.eye(theta.shape[1])
    step = np.linalg.solve(scaled + diagonal, (downhill * scale)[:, :, None])[:, :, 0] * scale
    return step.astype(np.float64), (step * downhill).sum(axis=1).astype(np.float64)
