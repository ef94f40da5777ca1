"""The point estimate of Approach 3 with its noise, and the refits that its intervals are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs
from flops_fit_core.fitting.diagnostics import note
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.chinchilla import SurfaceFit, correlated, fit_surface, linearise, refit
from flops_fit_core.fitting.laws.forms import SURFACES
from flops_fit_core.fitting.solvers.newton import EXPONENTS, Problem, Solved, joined
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares, Objective
from flops_fit_core.fitting.uncertainty.noise import NoiseModel, describe_runs, fit_noise, offsets
from flops_fit_core.fitting.uncertainty.outliers import Rejection, robust_fit, robust_refits
from flops_fit_core.records import Diagnostic

Criterion = Literal["robust", "least-squares", "huber"]

OUTLIER = "further from the law than noise explains: likely mistuned or mislabelled"
FEW_TRAJECTORIES, CORRELATED = 8, 0.8
"""Fewer trajectories than this whose rows are correlated more than that do not tell how much runs differ."""

_CELLS = 4_000_000
"""Losses that are drawn at once: 32 MB."""


@dataclass(frozen=True)
class PointFit:
    """A fit, the runs it uses, and their noise."""

    fit: SurfaceFit
    rejection: Rejection
    noise: NoiseModel | None
    """Of the runs that are used; None where they leave no degree of freedom."""
    everywhere: NoiseModel | None
    """The same noise for all runs."""
    rho: float = 0.0
    """Correlation within a trajectory that the estimate takes; 0 where every run has one row."""


def fit_point(problem: Problem, runs: Runs, constraint: FlopsPerToken, objective: Criterion) -> PointFit:
    """The estimate. Where trajectories have several rows, least squares is generalised (Aitken 1936) with the
    posterior mean of their correlation, from the residuals of the fit before; two rounds."""
    trunk = np.unique(runs.trunks, return_inverse=True)[1]
    shared = len(np.unique(trunk)) < len(trunk)
    point = _fit(problem, runs, trunk, constraint, objective, 0.0)
    if not shared or objective == "huber" or point.noise is None:
        return point
    for _ in range(2):
        rho = float(np.clip(point.noise.correlation, 0, 0.9999))
        point = _fit(correlated(problem, trunk, rho), runs, trunk, constraint, objective, rho)
        if point.noise is None:
            return point
    return point


def _fit(
    problem: Problem, runs: Runs, trunk: Ints, constraint: FlopsPerToken, objective: Criterion, rho: float
) -> PointFit:
    every = np.ones(len(runs), dtype=bool)
    if objective != "robust":
        point = _with_noise(fit_surface(problem, _criterion(objective)), Rejection(every), runs, trunk, constraint)
        return replace(point, rho=rho)
    point = _with_noise(*robust_fit(problem, rho), runs, trunk, constraint)
    if point.everywhere is not None and not point.rejection.kept.all():
        # Noise that grows with N or C is seen only now: runs that it explains are taken back.
        fit, rejection = robust_fit(problem, rho, point.everywhere.sigma())
        point = _with_noise(fit, rejection, runs, trunk, constraint)
    return replace(point, rho=rho)


def _with_noise(
    fit: SurfaceFit, rejection: Rejection, runs: Runs, trunk: Ints, constraint: FlopsPerToken
) -> PointFit:
    kept = rejection.kept
    if int(kept.sum()) <= int(fit.free.sum()):
        return PointFit(fit, rejection, None, None)
    offset = offsets(SURFACES["parametric"], natural(fit.theta[None], runs), constraint, runs)
    covariates = describe_runs(offset, np.log(runs.params), np.log(runs.flops))
    number = np.unique(trunk[kept], return_inverse=True)[1]
    noise = fit_noise(fit.residuals, fit.jacobian[:, fit.free], covariates[kept], number)
    return PointFit(fit, rejection, noise, noise.at(covariates, trunk))


def draw_residuals(
    point: PointFit, problem: Problem, objective: Criterion, draws: int, random: np.random.Generator
) -> Solved:
    """Refits of losses drawn from the law and the noise, with the same rule for outliers in each draw.

    Where runs were left out, a draw has all runs again, and as many outliers on average: each run is off, with
    the chance that one of the data is, by the excess of a run that was left out times a factor between 0 and 2.
    """
    fit, noise, everywhere = point.fit, point.noise, point.everywhere
    if noise is None or everywhere is None:
        raise FitError("there are as many parameters as runs; train more runs")
    kept = point.rejection.kept
    clean = bool(kept.all())
    pool = None
    if len(fit.residuals) >= 30 and not noise.settings[:, 4].any():
        pool = fit.residuals / (noise.sigma() * np.sqrt(1 - np.minimum(fit.leverage, 0.99)))
        pool = (pool - pool.mean()) / pool.std()
    source = correlated(problem, everywhere.trunk, point.rho) if point.rho else problem
    residuals, pattern, criterion = linearise(problem, fit.theta)[0], everywhere.sigma(), _criterion(objective)
    parts, step = [], max(32, _CELLS // len(residuals))
    for start in range(0, draws, step):
        errors = (noise if clean else everywhere).draw(min(step, draws - start), random, pool)
        if not clean:
            hit = random.random(errors.shape) < np.mean(~kept)
            errors += hit * random.choice(residuals[~kept], errors.shape) * random.uniform(0, 2, errors.shape)
        errors += problem.y - residuals
        drawn = replace(source, y=errors)
        solved = refit(drawn, fit.theta, criterion)
        if objective == "robust":
            solved = robust_refits(drawn, solved, point.rho, pattern, _leverage(fit, clean), clean)
        parts.append(solved)
    return joined(parts)


def _leverage(fit: SurfaceFit, clean: bool) -> Floats:
    """Of the runs, for :func:`robust_refits`, which needs it for clean draws."""
    return fit.leverage if clean else np.zeros(1)


def draw_cases(
    point: PointFit, used: Runs, objective: Criterion, draws: int, random: np.random.Generator
) -> Solved:
    """Refits of whole runs, or trajectories, drawn with replacement. Raises FitError for too few."""
    names, trunk = np.unique(used.trunks, return_inverse=True)
    sizes = len(np.unique(used.params))
    if len(names) < 20 or sizes < 6:
        raise FitError(
            f"bootstrap = 'cases' needs 20 independent runs (trunks) and 6 sizes; there are {len(names)} and "
            f"{sizes}: use bootstrap = 'residuals'"
        )
    weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    problem = replace(point.fit.problem, weights=weights[:, trunk].astype(float))
    return refit(problem, point.fit.theta, _criterion(objective))


def few_trajectories(noise: NoiseModel, used: Runs) -> str:
    """Why too few training runs with several rows each have no interval; empty where they have one."""
    count = len(set(used.trunks))
    if count >= FEW_TRAJECTORIES or count == len(used) or noise.chance_above(CORRELATED) < 0.95:
        return ""
    return (
        f"the rows of one trajectory share their error (correlation {noise.correlation:.3g}), so {len(used)} rows "
        f"are {count} independent runs, which do not show how much runs differ; train {FEW_TRAJECTORIES} or more"
    )


def about_objective(objective: Criterion, point: PointFit) -> Diagnostic:
    """How the law was fitted, and to which of the runs."""
    if objective == "huber":
        return note("objective", "Huber loss on ln L with delta = 1e-3, summed over runs")
    kind = "least squares on ln L"
    if point.rho:
        kind = f"generalised least squares on ln L, rows of one trajectory with correlation {point.rho:.3g}"
    return note("objective", f"{kind}, {_about_rejection(objective, point.rejection)}")


def _about_rejection(objective: Criterion, rejection: Rejection) -> str:
    n, out = len(rejection.kept), int(np.sum(~rejection.kept))
    if objective == "least-squares":
        return "every run"
    if not rejection.tried:
        return f"every run: {n} are too few to tell outliers"
    if rejection.too_many:
        return f"every run: {rejection.too_many} of {n} lie further off than noise explains, too many to leave out"
    if out:
        return f"without {out} of {n} runs further off than noise explains"
    return "every run: none lies further off than noise explains"


def natural(theta: Floats, runs: Runs) -> dict[str, Floats]:
    """E, A, B, alpha, beta from the solver's coordinates; one entry a row of ``theta``."""
    ln_params, ln_tokens = np.log(runs.params).mean(), np.log(runs.tokens).mean()
    e, ln_a, alpha, ln_b, beta = theta.T
    return {
        "E": e,
        "A": np.exp(ln_a + alpha * ln_params),
        "B": np.exp(ln_b + beta * ln_tokens),
        "alpha": alpha,
        "beta": beta,
    }


def at_bound(theta: Floats) -> Bools:
    """Where an exponent is at a bound or a term is gone; ``theta`` of shape (fits, 5)."""
    exponents = theta[:, [2, 4]]
    outside = (exponents <= EXPONENTS[0] * 1.001) | (exponents >= EXPONENTS[1] * 0.999)
    return np.asarray((outside | (theta[:, [1, 3]] <= -15)).any(axis=1))


def _criterion(objective: Criterion) -> Objective:
    return Huber() if objective == "huber" else LeastSquares()
