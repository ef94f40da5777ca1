"""The global fit of L = E + A / N^alpha + B / D^beta on ln L, and its refits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Ints
from flops_fit_core.fitting.solvers.newton import Problem, Solved, Trajectories, predict, solve
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares, Objective
from flops_fit_core.fitting.solvers.projection import starting_points


@dataclass(frozen=True)
class SurfaceFit:
    """A global fit, in the coordinates of the solver."""

    problem: Problem
    theta: Floats
    """Shape (5,)."""
    value: float
    """Sum of rho over the runs."""
    residuals: Floats
    """ln L minus the fitted ln L."""
    jacobian: Floats
    """d ln L / d theta, shape (n, 5)."""
    free: Bools
    """Shape (5,): False for a parameter on its bound."""
    converged: bool

    @property
    def determined(self) -> bool:
        """Whether the runs determine every free parameter: no direction is flat to rounding."""
        design = self.jacobian[:, self.free]
        size = np.sqrt((design**2).sum(axis=0))
        if not size.all():
            return False
        singular = np.linalg.svd(design / size, compute_uv=False)
        return bool(len(design) >= design.shape[1] and singular[-1] > 1e-7 * singular[0])

    @property
    def leverage(self) -> Floats:
        """Diagonal of the hat matrix of the free parameters, weights included."""
        design = self.jacobian[:, self.free]
        if self.problem.weights is not None:
            design = design * np.sqrt(self.problem.weights)[:, None]
        q = np.linalg.qr(design)[0]
        leverage: Floats = (q**2).sum(axis=1)
        return leverage


def make_problem(ln_params: Floats, ln_tokens: Floats, ln_loss: Floats) -> Problem:
    """Centre ln N and ln D. Raises FitError for fewer than three values of either: its exponent has no meaning."""
    for name, values in (("N", ln_params), ("D", ln_tokens)):
        distinct = len(np.unique(np.round(values, 4)))
        if distinct < 3:
            has = (
                f"all runs have the same {name}" if distinct == 1 else f"the runs have {distinct} values of {name}"
            )
            raise FitError(f"{has}: a law needs three or more; train runs that differ in {name}")
    return Problem(ln_params - ln_params.mean(), ln_tokens - ln_tokens.mean(), ln_loss)


def with_correlation(problem: Problem, trunk: Ints, rho: float) -> Problem:
    """The same runs, with correlation ``rho`` within a trajectory. ``weights`` of each fit may be 0 or 1."""
    trajectories = problem.trajectories or Trajectories.of(trunk)
    is_used = np.ones(len(trunk)) if problem.weights is None else problem.weights
    return replace(problem, trajectories=trajectories, shrink=trajectories.shrink(rho, is_used))


def fit_surface(problem: Problem, objective: Objective) -> SurfaceFit:
    """The global minimum, approximated by many starts.

    Least squares starts at the minima of the projected objective. Huber starts at the least-squares fit, at the
    end of a path of decreasing delta from it, and two standard errors to each side along the axes of its
    covariance: the local minima of Huber loss pass through different subsets of the runs.
    """
    solved = _select_best(solve(problem, starting_points(problem), LeastSquares()))
    if isinstance(objective, Huber):
        solved = _select_best(solve(problem, _huber_starts(problem, solved.theta[0], objective), objective))
    if not solved.converged[0]:
        solved = solve(problem, solved.theta, objective, steps=500)
    return build_fit(problem, solved)


def build_fit(problem: Problem, solved: Solved) -> SurfaceFit:
    """Build a SurfaceFit, with residuals and Jacobian, from a solution with one row."""
    theta = solved.theta[0]
    residuals, jacobian = linearise(problem, theta)
    free = np.array([theta[0] > 0, True, True, True, True])
    return SurfaceFit(problem, theta, float(solved.value[0]), residuals, jacobian, free, bool(solved.converged[0]))


def refit(problem: Problem, start: Floats, objective: Objective) -> Solved:
    """Many fits from the same starting point, one per row of ``problem.y`` (fits, n) or of its weights."""
    fits = len(problem.y) if problem.y.ndim > 1 else len(np.atleast_2d(problem.weights))  # type: ignore[arg-type]
    return solve(problem, np.tile(start, (fits, 1)), objective, tolerance=1e-11)


def _select_best(solved: Solved) -> Solved:
    best = int(np.argmin(solved.value))
    row = slice(best, best + 1)
    return Solved(solved.theta[row], solved.value[row], solved.converged[row])


def linearise(problem: Problem, theta: Floats) -> tuple[Floats, Floats]:
    """Residuals of ln L, and d ln L / d theta of shape (n, 5), for theta of shape (5,)."""
    loss, a, b = (part[0] for part in predict(problem, theta[None]))
    jacobian = np.stack([1 / loss, a / loss, -problem.u * a / loss, b / loss, -problem.v * b / loss], axis=1)
    return problem.y - np.log(loss), jacobian


def _huber_starts(problem: Problem, theta: Floats, objective: Huber) -> Floats:
    residuals, jacobian = linearise(problem, theta)
    path, delta = theta[None], float(np.quantile(np.abs(residuals), 0.9))
    while delta > 2 * objective.delta:
        path = solve(problem, path, Huber(delta), steps=5, tolerance=1e-3).theta
        delta /= 3
    size, axes = np.linalg.eigh(jacobian.T @ jacobian)
    spread = float(residuals @ residuals) / max(len(residuals) - 5, 1)
    deviations = (axes * np.sqrt(spread / np.maximum(size, size[-1] * 1e-10))).T
    starts = [theta + 2 * deviations[:3], theta - 2 * deviations[:3]]
    if len(residuals) < 100:
        # With few runs, local minima are few but narrow: search closer and further.
        starts += [theta + size * deviations for size in (-3, -1, 1, 3)]
    return np.concatenate([path, theta[None], *starts])
