"""Damped Newton for L = E + A / N^alpha + B / D^beta on ln L, vectorised over fits.

A fit is a row theta = (E, ln A', alpha, ln B', beta), with A' and B' the two terms at the runs' mean
ln N and ln D. E and the exponents stay within bounds by an active set. The Hessian is exact: with a Huber
objective, most runs lie outside delta and contribute only the curvature of the law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats, Ints
from flops_fit_core.fitting.solvers.objectives import Objective

EXPONENTS = (0.005, 3.0)
"""Bounds of alpha and beta."""
_MIN_CHUNK, _MAX_CHUNK_CELLS = 64, 10_000
"""Fits per chunk, and runs times fits per chunk: larger chunks exceed the processor cache."""
_LOWER = np.array([0.0, -60.0, EXPONENTS[0], -60.0, EXPONENTS[0]])
_UPPER = np.array([np.inf, 60.0, EXPONENTS[1], 60.0, EXPONENTS[1]])


@dataclass(frozen=True)
class Trajectories:
    """Groups of runs with correlated errors: rows of a trajectory."""

    number: Ints
    """Trajectory number of each run, from 0."""
    order: Ints
    """Runs sorted by trajectory."""
    starts: Ints
    """Start of each trajectory in ``order``."""

    @classmethod
    def of(cls, number: Ints) -> Trajectories:
        order = np.argsort(number, kind="stable")
        return cls(number, order, np.flatnonzero(np.diff(number[order], prepend=-1)))

    def sums(self, values: Floats) -> Floats:
        """Sum over each trajectory, from (..., n) to (..., trajectories)."""
        result: Floats = np.add.reduceat(values[..., self.order], self.starts, axis=-1)
        return result

    def shrink(self, rho: float, is_used: Floats) -> Floats:
        """Factor of a trajectory's sum in R^-1 at correlation rho; ``is_used`` (..., n) holds weights 1 or 0."""
        result: Floats = rho / (1 - rho + rho * self.sums(is_used))
        return result


@dataclass(frozen=True)
class Problem:
    """The runs of one or many fits. ``u`` = ln N and ``v`` = ln D minus their means, shape (n,).

    With ``trajectories``, least squares is generalised: the objective is r' R^-1 r (1 - rho) / 2 with R of
    correlation rho within a trajectory. R^-1 subtracts ``shrink`` times the trajectory's sum from each r.
    """

    u: Floats
    v: Floats
    y: Floats
    """Ln L, shape (n,), or (fits, n)."""
    weights: Floats | None = None
    """Weights of runs, shape (n,) or (fits, n); None for 1. Non-zero weights are equal within a trajectory."""
    trajectories: Trajectories | None = None
    shrink: Floats | None = None
    """Shape (trajectories,), or (fits, trajectories)."""

    def rows(self, index: Ints) -> Problem:
        """Select fits by index."""
        y = self.y[index] if self.y.ndim > 1 else self.y
        weights = self.weights[index] if self.weights is not None and self.weights.ndim > 1 else self.weights
        shrink = self.shrink[index] if self.shrink is not None and self.shrink.ndim > 1 else self.shrink
        return Problem(self.u, self.v, y, weights, self.trajectories, shrink)

    def precision(self, values: Floats) -> Floats:
        """R^-1 (1 - rho) times values of shape (fits, n) or (fits, k, n), weights included."""
        weights = self.weights
        if weights is not None and weights.ndim > 1 and values.ndim > 2:
            weights = weights[:, None]
        if self.trajectories is not None and self.shrink is not None:
            used = values if weights is None else values * (weights > 0)
            shrink = self.shrink[:, None] if self.shrink.ndim > 1 and values.ndim > 2 else self.shrink
            values = values - (shrink * self.trajectories.sums(used))[..., self.trajectories.number]
        return values if weights is None else values * weights


@dataclass(frozen=True)
class Solved:
    """Solutions of the fits."""

    theta: Floats
    value: Floats
    """Objective, shape (fits,)."""
    converged: Bools
    """Shape (fits,)."""


def concatenate(parts: list[Solved]) -> Solved:
    """Join solutions along the axis of fits, in order."""
    columns = zip(*((part.theta, part.value, part.converged) for part in parts), strict=True)
    theta, values, converged = (np.concatenate(column) for column in columns)
    return Solved(theta, values, converged)


def predict(problem: Problem, theta: Floats) -> tuple[Floats, Floats, Floats]:
    """L and its two reducible terms, each of shape (fits, n)."""
    a = np.exp(theta[:, 1:2] - theta[:, 2:3] * problem.u)
    b = np.exp(theta[:, 3:4] - theta[:, 4:5] * problem.v)
    return theta[:, :1] + a + b, a, b


def value(problem: Problem, theta: Floats, objective: Objective) -> Floats:
    """The objective of each fit."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        r = problem.y - np.log(predict(problem, theta)[0])
        if problem.trajectories is not None:
            total = np.einsum("fi,fi->f", r, problem.precision(r)) / 2
            return np.where(np.isfinite(total), total, np.inf)
        rho = objective.rho(r)
    total = rho.sum(axis=1) if problem.weights is None else (problem.weights * rho).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def derivatives(problem: Problem, theta: Floats, objective: Objective) -> tuple[Floats, Floats]:
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


def solve(
    problem: Problem, start: Floats, objective: Objective, steps: int = 100, tolerance: float = 1e-13
) -> Solved:
    """Minimise from every row of ``start``. A fit has converged if the next step would reduce its objective
    by less than ``tolerance`` of it, or no step reduces it."""
    chunk = max(_MIN_CHUNK, _MAX_CHUNK_CELLS // len(problem.u))
    if len(start) > chunk:
        parts = [np.arange(first, min(first + chunk, len(start))) for first in range(0, len(start), chunk)]
        solutions = [solve(problem.rows(part), start[part], objective, steps, tolerance) for part in parts]
        return concatenate(solutions)
    theta = np.clip(start, _LOWER, _UPPER)
    best = value(problem, theta, objective)
    damping = np.full(len(theta), 1e-3)
    converged = ~np.isfinite(best)
    live = np.flatnonzero(~converged)
    for _ in range(steps):
        if not len(live):
            break
        part, current = problem.rows(live), theta[live]
        step, gain = _step(part, current, objective, damping[live])
        new = np.clip(current + step, _LOWER, _UPPER)
        reached = value(part, new, objective)
        better = reached < best[live]
        theta[live[better]], best[live[better]] = new[better], reached[better]
        damping[live] = np.where(better, np.maximum(damping[live] / 10, 1e-12), damping[live] * 8)
        is_done = (gain <= tolerance * best[live]) | (damping[live] > 1e12)
        converged[live[is_done]] = True
        live = live[~is_done]
    return Solved(theta, best, converged)


def _step(problem: Problem, theta: Floats, objective: Objective, damping: Floats) -> tuple[Floats, Floats]:
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
