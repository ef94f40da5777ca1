"""Levenberg-Marquardt for any law of a few parameters, vectorised over fits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats

Model = Callable[[Floats], Floats]
"""Parameters (fits, p) -> ln L (fits, n)."""


def least_squares(
    model: Model, start: Floats, y: Floats, bounds: tuple[Floats, Floats], steps: int = 200
) -> tuple[Floats, Floats, Bools]:
    """Parameters (fits, p) and sum of squares (fits,) from each row of ``start``; ``y`` is (n,) or (fits, n).

    A fit has converged if the next step would reduce its sum of squares by less than 1e-12 of it, or no step can.
    """
    low, high = bounds
    theta = np.clip(start, low, high)
    rss = _rss(model, theta, y)
    damping, converged = np.full(len(theta), 1e-2), ~np.isfinite(rss)
    for _ in range(steps):
        live = np.flatnonzero(~converged)
        if not len(live):
            break
        at, target = theta[live], y[live] if y.ndim > 1 else y
        step, gain = _step(model, at, target, damping[live], bounds)
        new = np.clip(at + step, low, high)
        reached = _rss(model, new, target)
        better = reached < rss[live]
        theta[live[better]], rss[live[better]] = new[better], reached[better]
        damping[live] = np.where(better, np.maximum(damping[live] / 8, 1e-12), damping[live] * 6)
        converged[live[(gain <= 1e-12 * rss[live]) | (damping[live] > 1e12)]] = True
    return theta, rss, converged


def jacobian(model: Model, theta: Floats) -> Floats:
    """Central differences of the model, shape (fits, n, p)."""
    columns = []
    for index in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[:, index] = 1e-6 * np.maximum(1, np.abs(theta[:, index]))
        columns.append((model(theta + step) - model(theta - step)) / (2 * step[:, index : index + 1]))
    return np.stack(columns, axis=2)


def _rss(model: Model, theta: Floats, y: Floats) -> Floats:
    with np.errstate(all="ignore"):
        total = ((y - model(theta)) ** 2).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def _step(
    model: Model, theta: Floats, y: Floats, damping: Floats, bounds: tuple[Floats, Floats]
) -> tuple[Floats, Floats]:
    slopes = jacobian(model, theta)
    residuals = y - model(theta)
    downhill = np.einsum("fnp,fn->fp", slopes, residuals)
    at_bound = ((theta <= bounds[0]) & (downhill < 0)) | ((theta >= bounds[1]) & (downhill > 0))
    downhill = np.where(at_bound, 0.0, downhill)
    normal = slopes.transpose(0, 2, 1) @ slopes
    normal = np.where(at_bound[:, :, None] | at_bound[:, None, :], 0.0, normal)
    diagonal = np.einsum("fpp->fp", normal)
    scale = 1 / np.sqrt(np.maximum(diagonal, 1e-300))
    scale = np.where(at_bound, 1.0, scale)
    scaled = normal * scale[:, :, None] * scale[:, None, :]
    scaled = (
        scaled
        + (damping[:, None] + 1e-13)[:, :, None] * np.eye(theta.shape[1])
        + at_bound[:, :, None] * np.eye(theta.shape[1])
    )
    step = np.linalg.solve(scaled, (downhill * scale)[:, :, None])[:, :, 0] * scale
    return step, (step * downhill).sum(axis=1)
