"""Draws of the law of the optimum from the noise of the runs.

A draw adds errors to the responses of the runs and to the prior means, and fits again (randomise then optimise,
Bardsley et al. 2014). For parabolas, independent errors of one level and flat priors, the quantiles of the draws
are those of Fieller's theorem (1954) for the ratios n0 = (c n0) / c and a = (c a) / c. The prior of c rules out
profiles that bend downwards, with which Fieller's interval has no finite end.

The errors come from the noise model of the runs. Its degrees of freedom count the parameters that the runs
determine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats, Ints
from flops_fit_core.fitting.fitters.profile_law import ProfileFit, ProfileRuns
from flops_fit_core.fitting.fitters.profile_prior import PRIOR_ROWS, SHAPE_ROWS
from flops_fit_core.fitting.uncertainty.bootstrap import draw_scale
from flops_fit_core.fitting.uncertainty.noise import NoiseModel, build_covariates, fit_noise

MAX_NOISE_MODEL_RUNS = 2000
"""With more runs, all runs get the same noise level: the noise model costs too much and changes little."""
_MAX_CELLS = 2_000_000
"""Numbers per array in a chunk of draws."""
_MAX_FIRST_STEP = 2.0
_MAX_STEPS = 20
_MAX_DAMPING = 1e9
_TOLERANCE = 1e-4
"""A draw has converged if its next step would reduce the sum of squares by less, relative to it."""
_LEAST_SHARE = 1e-3
"""A drawn lowest loss is at least this share of the fitted lowest loss."""


@dataclass(frozen=True)
class LineDraws:
    """Draws of ln N_opt = n0 + a z and of the lowest loss of every budget."""

    n0: Floats
    a: Floats
    lowest: Floats
    """Shape (draws, budgets)."""
    ln_curvature: Floats


def row_covariates(fit: ProfileFit, runs: ProfileRuns) -> Floats:
    """Covariates of the noise model for all ``runs`` under the fit."""
    n0, a = fit.line
    return build_covariates(runs.x - n0 - a * runs.z, runs.x, runs.z)


def with_prior_rows(covariates: Floats, trunk: Ints) -> tuple[Floats, Ints]:
    """Add the rows of the prior, which have the noise of a run at the optimum and separate trunks."""
    first = int(trunk.max()) + 1
    rows = np.zeros((PRIOR_ROWS, covariates.shape[1]))
    return np.vstack([covariates, rows]), np.concatenate([trunk, first + np.arange(PRIOR_ROWS)])


def draw_errors(fit: ProfileFit, trunk: Ints, draws: int, random: np.random.Generator) -> Floats:
    """Errors of the runs and of the prior, shape (draws, n + 6), from the noise model of the runs.

    Noise may be larger on the under-trained side, grow with N or C, and be shared by the runs of a trunk.
    """
    count = len(fit.residuals)
    if count > MAX_NOISE_MODEL_RUNS:
        scale = fit.sigma * draw_scale(fit.runs.dof, draws, random)
        return np.asarray(random.standard_normal((draws, count)) * scale[:, None])
    trunk = np.unique(trunk, return_inverse=True)[1]
    covariates = row_covariates(fit, fit.runs)
    return fit_run_noise(fit, covariates, trunk).at(*with_prior_rows(covariates, trunk)).draw(draws, random)


def fit_run_noise(fit: ProfileFit, covariates: Floats, trunk: Ints) -> NoiseModel:
    """The noise model of the runs of a fit, with the ``covariates`` (n, 4) and trajectories of the runs."""
    n = len(fit.runs.y)
    return fit_noise(-fit.residuals[:n], fit.jacobian[:n] @ fit.determined_directions(), covariates, trunk)


def draw_lines(fit: ProfileFit, errors: Floats) -> LineDraws:
    """Draws of the line and of the lowest losses for ``errors`` (draws, n + 6)."""
    budgets = fit.runs.budgets
    theta = fit_draws(fit, errors)
    lowest = np.maximum(theta[:, :budgets], _LEAST_SHARE * fit.lowest)
    return LineDraws(theta[:, budgets + 1], theta[:, budgets + 2], lowest, theta[:, budgets])


def fit_draws(fit: ProfileFit, errors: Floats) -> Floats:
    """Theta (draws, budgets + 7) of fits to the responses and prior means plus ``errors`` (draws, n + 6).

    Levenberg's and Marquardt's method, for a chunk of draws at a time.
    """
    chunk = max(32, _MAX_CELLS // fit.jacobian.size)
    parts = [_fit_chunk(fit, errors[start : start + chunk]) for start in range(0, len(errors), chunk)]
    return np.concatenate(parts)


def _fit_chunk(fit: ProfileFit, errors: Floats) -> Floats:
    """Fits of the draws, from the linear image of their errors."""
    scale = np.maximum(np.sqrt((fit.jacobian**2).sum(axis=0)), 1e-300)
    change = errors @ np.linalg.pinv(fit.jacobian / scale).T / scale
    furthest = np.abs(change[:, fit.runs.budgets :]).max(axis=1)
    theta: Floats = fit.theta + change * np.minimum(1, _MAX_FIRST_STEP / np.maximum(furthest, 1e-300))[:, None]
    residuals, jacobian = fit.runs.evaluate_errors(theta, fit.sigma)
    residuals = residuals - errors
    best = (residuals**2).sum(axis=1)
    live, damping = np.arange(len(theta)), np.full(len(theta), 1e-3)
    for _ in range(_MAX_STEPS):
        step, gain = _damped_steps(residuals, jacobian, damping[live])
        new_residuals, new_jacobian = fit.runs.evaluate_errors(theta[live] + step, fit.sigma)
        new_residuals = new_residuals - errors[live]
        value = (new_residuals**2).sum(axis=1)
        is_better = value < best[live]
        theta[live[is_better]] += step[is_better]
        best[live[is_better]] = value[is_better]
        residuals[is_better], jacobian[is_better] = new_residuals[is_better], new_jacobian[is_better]
        damping[live] = np.where(is_better, np.maximum(damping[live] / 10, 1e-12), damping[live] * 8)
        is_live = (gain > _TOLERANCE * best[live]) & (damping[live] < _MAX_DAMPING)
        live, residuals, jacobian = live[is_live], residuals[is_live], jacobian[is_live]
        if not len(live):
            break
    return theta


def _damped_steps(residuals: Floats, jacobian: Floats, damping: Floats) -> tuple[Floats, Floats]:
    """Levenberg-Marquardt steps (draws, parameters), and the decrease of the sum of squares that each predicts."""
    transposed = jacobian.swapaxes(1, 2)
    gram, gradient = transposed @ jacobian, (transposed @ residuals[..., None])[..., 0]
    scale = np.sqrt(np.maximum(np.einsum("ijj->ij", gram), 1e-300))
    gram = gram / scale[:, :, None] / scale[:, None, :]
    gram[:, *np.diag_indices(gram.shape[1])] += damping[:, None]
    step = -np.linalg.solve(gram, (gradient / scale)[..., None])[..., 0] / scale
    return step, -(gradient * step).sum(axis=1)


def lowest_errors(fit: ProfileFit) -> Floats:
    """Relative standard errors of the lowest loss of each budget."""
    covariance = np.linalg.pinv(fit.jacobian.T @ fit.jacobian) * fit.sigma**2
    errors: Floats = np.sqrt(np.maximum(np.diag(covariance)[: fit.runs.budgets], 0)) / fit.lowest
    return errors


def separate_optima(fit: ProfileFit) -> tuple[Floats, Floats, float, int]:
    """Ln N_opt of each budget about the line if budgets need not follow it, its variance for runs of variance 1,
    the standard deviation of the runs, and its degrees of freedom."""
    budgets = fit.runs.budgets
    # The prior of the slope does not apply to budgets that need not follow a line.
    rows = np.delete(np.arange(len(fit.residuals)), len(fit.runs.y) + SHAPE_ROWS)
    jacobian, errors = fit.jacobian[rows], -fit.residuals[rows]
    by_optimum = jacobian[:, budgets + 1] / fit.curvature
    member = np.zeros((len(by_optimum), budgets))
    member[np.arange(len(fit.runs.y)), fit.runs.budget] = 1
    rest = np.delete(jacobian, [budgets + 1, budgets + 2], axis=1)
    design = np.column_stack([by_optimum[:, None] * member, rest])
    scale = np.maximum(np.sqrt((design**2).sum(axis=0)), 1e-300)
    inverse = np.linalg.pinv(design / scale)
    solution = inverse @ errors / scale
    residuals = (errors - design @ solution)[: len(fit.runs.y)]
    variances = (inverse**2).sum(axis=1) / scale**2
    dof = max(1, round(fit.dof) - (budgets - 2))
    sigma = float(np.sqrt(residuals @ residuals / dof))
    return solution[:budgets] / fit.curvature, variances[:budgets] / fit.curvature**2, sigma, dof
