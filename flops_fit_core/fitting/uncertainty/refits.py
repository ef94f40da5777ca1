"""The point estimate of a law with its noise, and the refits behind its intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs, median_inputs
from flops_fit_core.fitting.diagnostics import note
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.solvers.newton import EXPONENTS
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares, Objective
from flops_fit_core.fitting.solvers.problem import Problem, Solved, concatenate
from flops_fit_core.fitting.solvers.surface_fit import SurfaceFit, fit_surface, refit
from flops_fit_core.fitting.uncertainty.noise import NoiseModel, build_covariates, fit_noise, optimum_offsets
from flops_fit_core.fitting.uncertainty.outliers import Rejection, robust_fit, robust_refits
from flops_fit_core.records import Diagnostic

Criterion = Literal["robust", "least-squares", "huber"]

OUTLIER = "further from the law than noise explains: likely mistuned or mislabelled"
MIN_TRAJECTORIES, MAX_CORRELATION = 8, 0.8
"""Fewer trajectories with a higher correlation of their rows do not determine how much runs vary."""

_MAX_LOSSES = 4_000_000
"""Losses per chunk of draws: 32 MB."""


@dataclass(frozen=True)
class PointFit:
    """A fit, the runs it uses, and their noise."""

    fit: SurfaceFit
    rejection: Rejection
    noise: NoiseModel | None
    """Noise of the used runs; None if they leave no degree of freedom."""
    noise_of_all: NoiseModel | None
    """The same noise model, for all runs."""
    rho: float = 0.0
    """Correlation within a trajectory assumed by the estimate; 0 if every run has a single row."""


def fit_point(problem: Problem, runs: Runs, constraint: FlopsPerToken, objective: Criterion) -> PointFit:
    """The point estimate.

    If trajectories have several rows, least squares is generalised (Aitken 1936) with the posterior mean of their
    correlation, estimated from the residuals of the previous fit; two rounds.
    """
    trunk = np.unique(runs.trunks, return_inverse=True)[1]
    shared = len(np.unique(trunk)) < len(trunk)
    point = _fit(problem, runs, trunk, constraint, objective, 0.0)
    if not shared or objective == "huber" or point.noise is None:
        return point
    for _ in range(2):
        rho = float(np.clip(point.noise.correlation, 0, 0.9999))
        point = _fit(problem.with_correlation(trunk, rho), runs, trunk, constraint, objective, rho)
        if point.noise is None:
            return point
    return point


def _fit(
    problem: Problem, runs: Runs, trunk: Ints, constraint: FlopsPerToken, objective: Criterion, rho: float
) -> PointFit:
    all_runs = np.ones(len(runs), dtype=bool)
    if objective != "robust":
        point = add_noise(
            fit_surface(problem, _make_objective(objective)), Rejection(all_runs), runs, trunk, constraint
        )
        return replace(point, rho=rho)
    point = add_noise(*robust_fit(problem, rho), runs, trunk, constraint)
    if point.noise_of_all is not None and not point.rejection.accepted.all():
        # Noise that grows with N or C is known only after the first fit: it may explain rejected runs.
        fit, rejection = robust_fit(problem, rho, point.noise_of_all.sigma())
        point = add_noise(fit, rejection, runs, trunk, constraint)
    return replace(point, rho=rho)


def add_noise(
    fit: SurfaceFit, rejection: Rejection, runs: Runs, trunk: Ints, constraint: FlopsPerToken
) -> PointFit:
    """Fit the noise of the accepted runs. ``trunk`` numbers the trajectory of each of ``runs``."""
    accepted = rejection.accepted
    if int(accepted.sum()) <= int(fit.free.sum()):
        return PointFit(fit, rejection, None, None)
    if not {"params", "tokens"} <= set(fit.problem.law.inputs):
        offset = np.zeros(len(runs))
    else:
        offset = optimum_offsets(fit.surface(median_inputs(fit.problem.law, runs)), constraint, runs)
    covariates = build_covariates(offset, np.log(runs.params), np.log(runs.flops))
    number = np.unique(trunk[accepted], return_inverse=True)[1]
    noise = fit_noise(fit.residuals, fit.jacobian[:, fit.free], covariates[accepted], number)
    return PointFit(fit, rejection, noise, noise.at(covariates, trunk))


def draw_residuals(
    point: PointFit, problem: Problem, objective: Criterion, draws: int, random: np.random.Generator
) -> Solved:
    """Refits to losses drawn from the law and the noise, with the same rule for outliers in each draw.

    If runs were rejected, draws contain all runs and on average as many outliers: with the observed frequency of
    outliers, a run is shifted by the residual of a random rejected run times a factor between 0 and 2.
    """
    fit, noise, noise_of_all = point.fit, point.noise, point.noise_of_all
    if noise is None or noise_of_all is None:
        raise FitError("there are no more runs than parameters; train more runs")
    accepted = point.rejection.accepted
    is_clean = bool(accepted.all())
    pool = None
    if len(fit.residuals) >= 30 and not noise.settings[:, 4].any():
        pool = fit.residuals / (noise.sigma() * np.sqrt(1 - np.minimum(fit.leverage, 0.99)))
        pool = (pool - pool.mean()) / pool.std()
    source = problem.with_correlation(noise_of_all.trunk, point.rho) if point.rho else problem
    residuals, sigma, criterion = (
        problem.residuals(fit.theta[None])[0],
        noise_of_all.sigma(),
        _make_objective(objective),
    )
    parts, step = [], max(32, _MAX_LOSSES // len(residuals))
    for start in range(0, draws, step):
        errors = (noise if is_clean else noise_of_all).draw(min(step, draws - start), random, pool)
        if not is_clean:
            is_outlier = random.random(errors.shape) < np.mean(~accepted)
            errors += (
                is_outlier * random.choice(residuals[~accepted], errors.shape) * random.uniform(0, 2, errors.shape)
            )
        errors += problem.y - residuals
        resampled = source.changed(y=errors)
        solved = refit(resampled, fit.theta, criterion)
        if objective == "robust":
            solved = robust_refits(resampled, solved, point.rho, sigma, _leverage(fit, is_clean), is_clean)
        parts.append(solved)
    return concatenate(parts)


def _leverage(fit: SurfaceFit, is_clean: bool) -> Floats:
    """Leverage for :func:`robust_refits`, which uses it only for clean draws."""
    return fit.leverage if is_clean else np.zeros(1)


def draw_cases(
    point: PointFit, used: Runs, objective: Criterion, draws: int, random: np.random.Generator
) -> Solved:
    """Refits to runs, or trajectories, drawn with replacement. Raises FitError for too few."""
    names, trunk = np.unique(used.trunks, return_inverse=True)
    sizes = len(np.unique(used.params))
    if len(names) < 20 or sizes < 6:
        raise FitError(
            f"bootstrap = 'cases' needs 20 independent runs (trunks) and 6 sizes, but has {len(names)} and "
            f"{sizes}: use bootstrap = 'residuals'"
        )
    weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    problem = point.fit.problem.changed(weights=weights[:, trunk].astype(float))
    return refit(problem, point.fit.theta, _make_objective(objective))


def explain_few_trajectories(noise: NoiseModel, used: Runs) -> str:
    """Explain why too few trajectories with several rows each give no interval; empty if they give one."""
    count = len(set(used.trunks))
    if count >= MIN_TRAJECTORIES or count == len(used) or noise.chance_above(MAX_CORRELATION) < 0.95:
        return ""
    return (
        f"the rows of a trajectory share their error (correlation {noise.correlation:.3g}), so {len(used)} rows "
        f"are {count} independent runs, too few to estimate how much runs vary; train {MIN_TRAJECTORIES} or more"
    )


def describe_objective(objective: Criterion, point: PointFit) -> Diagnostic:
    """Describe the objective, and which runs it uses."""
    if objective == "huber":
        return note("objective", "Huber loss on ln L with delta = 1e-3, summed over runs")
    response = "ln L" if point.fit.problem.law.response == "log-loss" else "L"
    kind = f"least squares on {response}"
    if point.rho:
        kind = f"generalised least squares on {response}, rows of a trajectory with correlation {point.rho:.3g}"
    return note("objective", f"{kind}; {_describe_rejection(objective, point.rejection)}")


def _describe_rejection(objective: Criterion, rejection: Rejection) -> str:
    n, excluded = len(rejection.accepted), int(np.sum(~rejection.accepted))
    if objective == "least-squares":
        return "all runs are used"
    if not rejection.tried:
        return f"all runs are used: {n} are too few to detect outliers"
    if rejection.too_many:
        return f"all runs are used: {rejection.too_many} of {n} look like outliers, too many to leave out"
    if excluded:
        return f"{excluded} of {n} runs rejected as outliers"
    return "no run rejected as an outlier"


def at_bound(theta: Floats) -> Bools:
    """Fits with an exponent at a bound or a vanished term; ``theta`` has shape (fits, 5)."""
    exponents = theta[:, [2, 4]]
    outside = (exponents <= EXPONENTS[0] * 1.001) | (exponents >= EXPONENTS[1] * 0.999)
    return np.asarray((outside | (theta[:, [1, 3]] <= -15)).any(axis=1))


def _make_objective(objective: Criterion) -> Objective:
    return Huber() if objective == "huber" else LeastSquares()
