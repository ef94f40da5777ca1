"""Damped Newton for L = E + A / N^alpha + B / D^beta on ln L, vectorised over fits.

A fit is a row theta = (E, ln A', alpha, ln B', beta), with A' and B' the two terms at the runs' mean
ln N and ln D. E and the exponents stay within bounds by an active set. The Hessian is exact: with a Huber
objective, most runs lie outside delta and contribute only the curvature of the law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares, Objective
from flops_fit_core.fitting.solvers.problem import Problem, Solved, Trajectories
from flops_fit_core.fitting.solvers.projection import starting_points
from flops_fit_core.plugins.protocols import LossLaw
from flops_fit_core.plugins.registry.law_index import find_law

EXPONENTS = (0.005, 3.0)
"""Bounds of alpha and beta."""
_LOWER = np.array([0.0, -60.0, EXPONENTS[0], -60.0, EXPONENTS[0]])
_UPPER = np.array([np.inf, 60.0, EXPONENTS[1], 60.0, EXPONENTS[1]])


@dataclass(frozen=True)
class ChinchillaProblem(Problem):
    """The runs of one or many fits. ``u`` = ln N and ``v`` = ln D minus their means, shape (n,)."""

    min_chunk: ClassVar[int] = 64
    max_chunk_cells: ClassVar[int] = 10_000
    u: Floats
    v: Floats
    y: Floats
    weights: Floats | None = None
    trajectories: Trajectories | None = None
    shrink: Floats | None = None
    centre: tuple[float, float] = (0.0, 0.0)
    """Mean ln N and ln D, which ``u`` and ``v`` lack."""

    @property
    def law(self) -> LossLaw:
        return find_law("chinchilla")

    @property
    def size(self) -> int:
        return 5

    def residuals(self, theta: Floats) -> Floats:
        return self.y - np.log(predict(self, theta)[0])

    def jacobian(self, theta: Floats) -> Floats:
        loss, a, b = predict(self, theta)
        jacobian = np.stack([1 / loss, a / loss, -self.u * a / loss, b / loss, -self.v * b / loss], axis=1)
        jacobian[:, 0] *= theta[:, :1] > 0
        return jacobian

    def values(self, theta: Floats) -> dict[str, Floats]:
        e, ln_a, alpha, ln_b, beta = theta.T
        ln_params, ln_tokens = self.centre
        return {
            "E": e,
            "A": np.exp(ln_a + alpha * ln_params),
            "alpha": alpha,
            "B": np.exp(ln_b + beta * ln_tokens),
            "beta": beta,
        }

    def is_undertrained(self, theta: Floats) -> Bools:
        _, a, b = predict(self, theta)
        is_undertrained: Bools = theta[:, 4:] * b > theta[:, 2:3] * a
        return is_undertrained

    def is_free(self, theta: Floats) -> Bools:
        return np.array([theta[0] > 0, True, True, True, True])

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        return _LOWER, _UPPER

    def value(self, theta: Floats, objective: Objective) -> Floats:
        return value(self, theta, objective)

    def step(self, theta: Floats, objective: Objective, damping: Floats) -> tuple[Floats, Floats]:
        return _step(self, theta, objective, damping)

    def search(self, objective: Objective) -> Solved:
        """Least squares starts at the minima of the projected objective.

        Huber starts at the least-squares fit, at the end of a path of decreasing delta from it, and two standard
        errors to each side along the axes of its covariance: the local minima of Huber loss pass through different
        subsets of the runs.
        """
        starts = starting_points(self.u, self.v, self.y, self.weights)
        solved = self.solve(starts, LeastSquares()).best()
        if isinstance(objective, Huber):
            solved = self.solve(_huber_starts(self, solved.theta, objective), objective).best()
        if not solved.converged[0]:
            solved = self.solve(solved.theta, objective, steps=500)
        return solved

    def _columns(self, columns: Any) -> dict[str, Any]:
        return {"u": self.u[columns], "v": self.v[columns]}


def _huber_starts(problem: ChinchillaProblem, theta: Floats, objective: Huber) -> Floats:
    residuals, jacobian = problem.residuals(theta)[0], problem.jacobian(theta)[0].T
    path, delta = theta, float(np.quantile(np.abs(residuals), 0.9))
    while delta > 2 * objective.delta:
        path = problem.solve(path, Huber(delta), steps=5, tolerance=1e-3).theta
        delta /= 3
    size, axes = np.linalg.eigh(jacobian.T @ jacobian)
    spread = float(residuals @ residuals) / max(len(residuals) - 5, 1)
    deviations = (axes * np.sqrt(spread / np.maximum(size, size[-1] * 1e-10))).T
    starts = [theta + 2 * deviations[:3], theta - 2 * deviations[:3]]
    if len(residuals) < 100:
        # With few runs, local minima are few but narrow: search closer and further.
        starts += [theta + size * deviations for size in (-3, -1, 1, 3)]
    return np.concatenate([path, theta, *starts])


def predict(problem: ChinchillaProblem, theta: Floats) -> tuple[Floats, Floats, Floats]:
    """L and its two reducible terms, each of shape (fits, n)."""
    a = np.exp(theta[:, 1:2] - theta[:, 2:3] * problem.u)
    b = np.exp(theta[:, 3:4] - theta[:, 4:5] * problem.v)
    return theta[:, :1] + a + b, a, b


def value(problem: ChinchillaProblem, theta: Floats, objective: Objective) -> Floats:
    """The objective of each fit."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        r = problem.y - np.log(predict(problem, theta)[0])
        if problem.trajectories is not None:
            total = np.einsum("fi,fi->f", r, problem.precision(r)) / 2
            return np.where(np.isfinite(total), total, np.inf)
        rho = objective.rho(r)
    total = rho.sum(axis=1) if problem.weights is None else (problem.weights * rho).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def derivatives(problem: ChinchillaProblem, theta: Floats, objective: Objective) -> tuple[Floats, Floats]:
    """Gradient (fits, 5) and exact Hessian (fits, 5, 5) of the objective."""
    loss, a, b = predict(problem, theta)
    r = problem.y - np.log(loss)
    pa, pb = a / loss, b / loss
    jacobian = np.stack([1 / loss, pa, -problem.u * pa, pb, -problem.v * pb], axis=1)
    if problem.trajectories is not None:
        psi = problem.precision(r)
        weighted_jacobian = problem.precision(jacobian) + jacobian * psi[:, None, :]
    else:
        psi, curvature = objective.psi(r), objective.curvature(r)
        if problem.weights is not None:
            psi, curvature = psi * problem.weights, curvature * problem.weights
        weighted_jacobian = jacobian * (curvature + psi)[:, None, :]
    gradient = -(jacobian @ psi[:, :, None])[:, :, 0]
    hessian = weighted_jacobian @ jacobian.transpose(0, 2, 1)
    for first, slope, weighted in ((1, problem.u, psi * pa), (3, problem.v, psi * pb)):
        once, twice = weighted @ slope, weighted @ slope**2
        hessian[:, first, first] -= weighted.sum(axis=1)
        hessian[:, first, first + 1] += once
        hessian[:, first + 1, first] += once
        hessian[:, first + 1, first + 1] -= twice
    return gradient, hessian


def _step(
    problem: ChinchillaProblem, theta: Floats, objective: Objective, damping: Floats
) -> tuple[Floats, Floats]:
    """A damped Newton step along the absolute curvature, and its predicted reduction of the objective."""
    gradient, hessian = derivatives(problem, theta, objective)
    at_bound = ((theta <= _LOWER) & (gradient > 0)) | ((theta >= _UPPER) & (gradient < 0))
    gradient = np.where(at_bound, 0.0, gradient)
    hessian = np.where(at_bound[:, :, None] | at_bound[:, None, :], 0.0, hessian)
    scale = 1 / np.sqrt(np.maximum(np.abs(np.einsum("fii->fi", hessian)), 1e-300))
    scale = np.where(at_bound, 1.0, scale)
    hessian = hessian * scale[:, :, None] * scale[:, None, :]
    curvature, axes = np.linalg.eigh(hessian)
    size = np.maximum(np.abs(curvature), 1e-14) + damping[:, None]
    along = np.einsum("fij,fi->fj", axes, gradient * scale)
    step = -np.einsum("fij,fj->fi", axes, along / size) * scale
    return step, (along**2 / size).sum(axis=1)
