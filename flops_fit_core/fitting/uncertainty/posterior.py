"""A law with its prior: the most probable parameters, and draws from their posterior.

The prior is a Gaussian of theta. The variance of the noise comes from the residuals. A draw refits the losses plus
drawn noise, with the centre of the prior drawn, too: for a linear law these are exact draws from the posterior
(Bardsley et al. 2014, randomize-then-optimize).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.solvers.law_problem import LawProblem
from flops_fit_core.fitting.solvers.objectives import LeastSquares
from flops_fit_core.fitting.solvers.problem import Solved, concatenate
from flops_fit_core.fitting.solvers.surface_fit import SurfaceFit, build_fit, check_spread
from flops_fit_core.fitting.uncertainty.refits import Criterion, PointFit, add_noise, fit_point
from flops_fit_core.plugins.protocols import LossLaw

_MAX_LOSSES = 4_000_000
"""Losses per chunk of draws: 32 MB."""
_STEPS = 40
"""Steps of a refit. It starts at the point estimate, and hardly determined directions converge slowly."""


def make_law_problem(law: LossLaw, runs: Runs) -> LawProblem:
    """The problem without a prior. Raises FitError for too few runs, or runs that do not vary."""
    inputs = runs.inputs_of(law)
    size = len(law.parameters)
    if len(runs) <= size:
        raise FitError(f"{len(runs)} runs cannot fit a law of {size} parameters: train {size + 1} or more")
    if {"params", "tokens"} <= set(law.inputs):
        check_spread(np.log(runs.params), np.log(runs.tokens))
    if "unique_tokens" in law.inputs and float(np.max(runs.tokens / runs.unique)) < 1.01:
        raise FitError(
            "no run repeats its training tokens, so repetition cannot be fitted: choose another law, or "
            "add a column unique_tokens"
        )
    problem = LawProblem.of(law, runs, inputs)
    if float(np.ptp(problem.y)) < 1e-12:
        raise FitError("all runs have the same loss, so no law can be fitted: check the column of losses")
    return problem


def fit_law_point(
    problem: LawProblem, runs: Runs, constraint: FlopsPerToken, objective: Criterion, prior: bool = True
) -> PointFit:
    """The point estimate: without the prior first, for outliers and the variance; then with the prior."""
    point = fit_point(problem, runs, constraint, objective)
    if not prior or objective == "huber" or not problem.coordinates.prior[1].any():
        return point
    trunk = np.unique(runs.trunks, return_inverse=True)[1]
    source = problem.with_correlation(trunk, point.rho) if point.rho else problem
    accepted = source.select(point.rejection.accepted, point.rho)
    fit = fit_with_prior(accepted, point.fit)
    return replace(add_noise(fit, point.rejection, runs, trunk, constraint), rho=point.rho)


def fit_with_prior(problem: LawProblem, start: SurfaceFit | None = None) -> SurfaceFit:
    """The most probable parameters; the variance of the noise comes from the fit before.

    ``start`` is the fit without the prior, if available.
    """
    fit = start or build_fit(problem, problem.search(LeastSquares()))
    for search in (True, False):
        weighted = problem.with_prior(variance_of(fit))
        solved = weighted.search(LeastSquares()) if search else weighted.solve(fit.theta[None], LeastSquares())
        fit = build_fit(weighted, solved)
    return fit


def variance_of(fit: SurfaceFit) -> float:
    """Variance of the noise of runs with weight 1."""
    return 2 * fit.value / max(len(fit.residuals) - fit.problem.size, 1)


def weigh_by_drift(problem: LawProblem, flops: Floats, trunk: Ints, drift: float) -> LawProblem:
    """The same problem with weights of mean 1 for a law that drifts away from runs of less compute.

    The error of a run has the variance sigma^2 (1 + drift^2 ln(C_max / C)): noise, and the random walk of the law
    in ln C. The rows of a trajectory have the weight of its largest C. A run with more noise than the most precise
    run has a smaller share of drift.
    """
    if not drift:
        return problem
    largest = np.zeros(int(trunk.max()) + 1)
    np.maximum.at(largest, trunk, flops)
    distance = np.log(flops.max() / largest[trunk])
    if problem.noise is not None:
        distance = distance / problem.noise**2
    weights = 1 / (1 + drift**2 * distance)
    return replace(problem, weights=weights / weights.mean())


def draw_posterior(point: PointFit, draws: int, random: np.random.Generator) -> Solved:
    """Draws of theta from the posterior, by refits."""
    fit, noise = point.fit, point.noise
    problem = fit.problem
    assert isinstance(problem, LawProblem)
    assert noise is not None
    parts, step = [], max(32, _MAX_LOSSES // len(fit.residuals))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        parts.append(refit_with_prior(problem, fit.theta, problem.y + noise.draw(count, random), random))
    return concatenate(parts)


def refit_with_prior(problem: LawProblem, start: Floats, y: Floats, random: np.random.Generator) -> Solved:
    """A fit to each row of ``y`` (fits, n), with the centre of the prior drawn from the prior."""
    drawn = replace(problem, y=y, centre=_draw_centres(problem, len(y), random))
    return drawn.solve(np.tile(start, (len(y), 1)), LeastSquares(), steps=_STEPS, tolerance=1e-9)


def is_usable(problem: LawProblem, theta: Floats) -> Bools:
    """Draws with all parameters inside their bounds, except those with a natural bound at 0, such as E."""
    free = problem.is_free(theta)
    natural = [parameter.scale == "linear" and parameter.low == 0 for parameter in problem.law.parameters]
    return np.asarray((free | np.array(natural)).all(axis=1))


def _draw_centres(problem: LawProblem, count: int, random: np.random.Generator) -> Floats | None:
    if problem.centre is None:
        return None
    _, precision = problem.coordinates.prior
    spread = np.where(precision > 0, 1 / np.sqrt(np.where(precision > 0, precision, 1.0)), 0.0)
    return problem.centre + spread * random.standard_normal((count, problem.size))
