"""Least squares that leaves out gross outliers and nothing else.

A reweighted estimator with a hard rejection rule (Gervini and Yohai 2002): residuals from a Huber fit give
a scale that a tenth of bad runs cannot move; runs beyond what the largest of n Gaussian residuals would
reach are left out, least squares is fitted to the rest, and both are repeated until nothing changes. On
clean runs nothing is left out (19 times in 20), so it is least squares; each run left out is named.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from flops_fit_core.fitting.data import Bools, Floats
from flops_fit_core.fitting.losses import Huber, LeastSquares
from flops_fit_core.fitting.newton import Problem
from flops_fit_core.fitting.surface import SurfaceFit, fit_surface, linearise

SPARE = 10
"""Degrees of freedom below which no run can be told to be an outlier."""
MOST = 0.2
"""Share of the runs beyond which the law is wrong rather than the runs."""


def robust_fit(problem: Problem) -> tuple[SurfaceFit, Bools]:
    """The fit, and which runs it uses, shape (n,). Too few runs, or too many outliers: plain least squares."""
    n = len(problem.y)
    every = np.ones(n, dtype=bool)
    if n - 5 < SPARE:
        return fit_surface(problem, LeastSquares()), every
    first = fit_surface(problem, Huber())
    # Five runs are passed through exactly and say nothing of the scale.
    sizes = np.sort(np.abs(first.residuals))[5:]
    scale = float(np.median(sizes)) / float(stats.norm.ppf(0.75))
    cutoff = float(stats.norm.ppf(1 - 0.025 / n))
    kept = np.abs(first.residuals) <= cutoff * scale
    fit = first
    for _ in range(10):
        if scale == 0 or kept.sum() < max(5 + SPARE, (1 - MOST) * n):
            return fit_surface(problem, LeastSquares()), every
        fit = fit_surface(subset(problem, kept), LeastSquares())
        residuals, leverage = _all_residuals(problem, fit, kept)
        scale = float(np.sqrt(np.sum(residuals[kept] ** 2) / (kept.sum() - 5)))
        spread = scale * np.sqrt(np.where(kept, 1 - np.minimum(leverage, 0.99), 1 + leverage))
        now = np.abs(residuals) <= cutoff * spread
        if (now == kept).all():
            break
        kept = now
    return fit, kept


def subset(problem: Problem, kept: Bools) -> Problem:
    """The same problem, in the same coordinates, with fewer runs."""
    return Problem(problem.u[kept], problem.v[kept], problem.y[kept])


def _all_residuals(problem: Problem, fit: SurfaceFit, kept: Bools) -> tuple[Floats, Floats]:
    """Residuals and leverages of all runs under a fit of some of them."""
    residuals, jacobian = linearise(problem, fit.theta)
    used = jacobian[kept][:, fit.free]
    inverse = np.linalg.pinv(used.T @ used)
    design = jacobian[:, fit.free]
    return residuals, np.einsum("ij,jk,ik->i", design, inverse, design)
