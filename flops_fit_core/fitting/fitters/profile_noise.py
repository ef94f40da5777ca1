"""Draws of the law of the optimum from the noise of the runs.

In the parameters of ``ProfileFit.linear_design`` the response is nearly linear, and exactly so for parabolas. A
draw adds the least-squares image of drawn errors to the estimate. For independent errors of one level this samples
the posterior under flat priors of the linear parameters, and its quantiles are those of Fieller's theorem (1954)
for the ratios n0 = (c n0) / c and a = (c a) / c.

A draw with c <= 0 has no minimum: its loss falls beyond any size on one side. Fieller's interval counts it on the
side on which the loss falls at the estimate. The line of the draw is therefore mirrored at the estimate and moved
far off. If too many draws bend downwards, an end of the interval is infinite, and no interval is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats, Ints
from flops_fit_core.fitting.fitters.profile_law import SHAPE_PARAMETERS, ProfileFit, ProfileRuns
from flops_fit_core.fitting.uncertainty.bootstrap import draw_scale
from flops_fit_core.fitting.uncertainty.noise import build_covariates, fit_noise

MAX_NOISE_MODEL_RUNS = 2000
"""With more runs, all runs get the same noise level: the noise model costs too much and changes little."""
_FAR = 1e4


@dataclass(frozen=True)
class LineDraws:
    """Draws of ln N_opt = n0 + a z and of the lowest loss of every budget."""

    n0: Floats
    a: Floats
    lowest: Floats
    """Shape (draws, budgets)."""
    bends_upwards: Bools


def row_covariates(fit: ProfileFit, runs: ProfileRuns) -> Floats:
    """Covariates of the noise model for all ``runs`` under the fit."""
    n0, a = fit.line
    return build_covariates(runs.x - n0 - a * runs.z, runs.x, runs.z)


def with_prior_rows(covariates: Floats, trunk: Ints) -> tuple[Floats, Ints]:
    """Add the rows of the prior, which have the noise of a run at the optimum and separate trunks."""
    first = int(trunk.max()) + 1
    rows = np.zeros((SHAPE_PARAMETERS, covariates.shape[1]))
    return np.vstack([covariates, rows]), np.concatenate([trunk, first + np.arange(SHAPE_PARAMETERS)])


def draw_errors(fit: ProfileFit, trunk: Ints, draws: int, random: np.random.Generator) -> Floats:
    """Errors of the runs and of the prior, shape (draws, n + 4), from the noise model of the runs.

    Noise may be larger on the under-trained side, grow with N or C, and be shared by the runs of a trunk.
    """
    count = len(fit.residuals)
    if count > MAX_NOISE_MODEL_RUNS:
        scale = fit.sigma * draw_scale(fit.runs.dof, draws, random)
        return np.asarray(random.standard_normal((draws, count)) * scale[:, None])
    covariates, trunk = with_prior_rows(row_covariates(fit, fit.runs), np.unique(trunk, return_inverse=True)[1])
    return fit_noise(-fit.residuals, fit.linear_design(), covariates, trunk).draw(draws, random)


def draw_lines(fit: ProfileFit, errors: Floats) -> LineDraws:
    """Draws of the line and of the lowest losses for ``errors`` (draws, n + 4)."""
    budgets, c = fit.runs.budgets, fit.curvature
    design = fit.linear_design()
    scale = np.maximum(np.sqrt((design**2).sum(axis=0)), 1e-300)
    change = errors @ np.linalg.pinv(design / scale).T / scale
    curvature = c + change[:, budgets]
    bends_upwards: Bools = curvature > 0
    by_c = np.where(curvature == 0, np.inf, curvature)
    shifts = change[:, [budgets + 1, budgets + 2]] / by_c[:, None]
    shifts = np.where(bends_upwards[:, None], shifts, -_FAR * shifts)
    n0, a = fit.line
    z = budget_centres(fit.runs)
    # The level of the linear problem is that of the parabola at the old optimum; the minimum lies lower.
    moved = shifts[:, :1] + shifts[:, 1:] * z
    weight = np.exp(-fit.theta[budgets + 3] * z)
    drop = np.where(bends_upwards[:, None], curvature[:, None] * weight * moved**2 / 2, 0.0)
    lowest = fit.lowest + change[:, :budgets] - drop
    return LineDraws(n0 + shifts[:, 0], a + shifts[:, 1], np.maximum(lowest, 1e-300), bends_upwards)


def lowest_errors(fit: ProfileFit) -> Floats:
    """Relative standard errors of the lowest loss of each budget."""
    covariance = np.linalg.pinv(fit.jacobian.T @ fit.jacobian) * fit.sigma**2
    errors: Floats = np.sqrt(np.maximum(np.diag(covariance)[: fit.runs.budgets], 0)) / fit.lowest
    return errors


def separate_optima(fit: ProfileFit) -> tuple[Floats, Floats, float, int]:
    """Ln N_opt of each budget about the line if budgets need not follow it, its variance for runs of variance 1,
    the standard deviation of the runs, and its degrees of freedom."""
    budgets = fit.runs.budgets
    by_optimum = fit.jacobian[:, budgets + 1] / fit.curvature
    member = np.zeros((len(by_optimum), budgets))
    member[np.arange(len(fit.runs.y)), fit.runs.budget] = 1
    rest = np.delete(fit.jacobian, [budgets + 1, budgets + 2], axis=1)
    design = np.column_stack([by_optimum[:, None] * member, rest])
    scale = np.maximum(np.sqrt((design**2).sum(axis=0)), 1e-300)
    inverse = np.linalg.pinv(design / scale)
    solution = inverse @ -fit.residuals / scale
    residuals = -fit.residuals - design @ solution
    variances = (inverse**2).sum(axis=1) / scale**2
    dof = fit.runs.dof - (budgets - 2)
    sigma = float(np.sqrt(residuals @ residuals / max(dof, 1)))
    return solution[:budgets] / fit.curvature, variances[:budgets] / fit.curvature**2, sigma, dof


def budget_centres(runs: ProfileRuns) -> Floats:
    """Ln C of every budget, less the centre of ``z``."""
    z: Floats = np.bincount(runs.budget, runs.z) / np.bincount(runs.budget)
    return z
