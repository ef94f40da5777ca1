"""The interface of a least-squares problem: the runs of one or many fits, and a law in coordinates theta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats, Ints
from flops_fit_core.fitting.solvers.objectives import Objective
from flops_fit_core.plugins.protocols import LossLaw


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
class Solved:
    """Solutions of the fits."""

    theta: Floats
    value: Floats
    """Objective, shape (fits,)."""
    converged: Bools
    """Shape (fits,)."""

    def best(self) -> Solved:
        """The solution with the lowest objective, as a single row."""
        row = int(np.argmin(self.value))
        return Solved(self.theta[row : row + 1], self.value[row : row + 1], self.converged[row : row + 1])


def concatenate(parts: list[Solved]) -> Solved:
    """Join solutions along the axis of fits, in order."""
    columns = zip(*((part.theta, part.value, part.converged) for part in parts), strict=True)
    theta, values, converged = (np.concatenate(column) for column in columns)
    return Solved(theta, values, converged)


class Problem(ABC):
    """The runs of one or many fits, and a law. Subclasses are frozen dataclasses.

    With ``trajectories``, least squares is generalised: the objective is r' R^-1 r (1 - rho) / 2 with R of
    correlation rho within a trajectory. R^-1 subtracts ``shrink`` times the trajectory's sum from each r.
    """

    min_chunk: ClassVar[int] = 32
    """Least number of fits that are solved together."""
    max_chunk_cells: ClassVar[int] = 20_000
    """Runs times fits that are solved together: larger chunks exceed the processor cache."""
    y: Floats
    """Ln L, shape (n,), or (fits, n)."""
    weights: Floats | None
    """Weights of runs, shape (n,) or (fits, n); None for 1. Non-zero weights are equal within a trajectory."""
    trajectories: Trajectories | None
    shrink: Floats | None
    """Shape (trajectories,), or (fits, trajectories)."""

    @property
    @abstractmethod
    def law(self) -> LossLaw:
        """The law."""

    @abstractmethod
    def values(self, theta: Floats) -> dict[str, Floats]:
        """The law's parameters by name, each of shape (fits,), from theta of shape (fits, size)."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of parameters."""

    @abstractmethod
    def residuals(self, theta: Floats) -> Floats:
        """``y`` minus the law, shape (fits, n)."""

    @abstractmethod
    def jacobian(self, theta: Floats) -> Floats:
        """Derivatives of the law by theta, shape (fits, size, n); 0 for a parameter on a bound at 0."""

    @abstractmethod
    def is_undertrained(self, theta: Floats) -> Bools:
        """Whether, at equal C = 6 N D, more tokens and fewer parameters reduce the loss of a run; (fits, n)."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[Floats, Floats]:
        """Lower and upper bounds of theta, shape (size,)."""

    @abstractmethod
    def value(self, theta: Floats, objective: Objective) -> Floats:
        """The objective of each fit, shape (fits,); infinity where it has no value."""

    @abstractmethod
    def step(self, theta: Floats, objective: Objective, damping: Floats) -> tuple[Floats, Floats]:
        """A damped step (fits, size), and its predicted reduction of the objective (fits,)."""

    def solve(self, start: Floats, objective: Objective, steps: int = 100, tolerance: float = 1e-13) -> Solved:
        """Minimise from every row of ``start``. A fit has converged if the next step would reduce its objective
        by less than ``tolerance`` of it, or no step reduces it."""
        chunk = max(self.min_chunk, self.max_chunk_cells // self.y.shape[-1])
        if len(start) > chunk:
            parts = [np.arange(first, min(first + chunk, len(start))) for first in range(0, len(start), chunk)]
            return concatenate([self.rows(part).solve(start[part], objective, steps, tolerance) for part in parts])
        low, high = self.bounds
        theta = np.clip(start, low, high)
        best = self.value(theta, objective)
        damping = np.full(len(theta), 1e-3)
        converged = ~np.isfinite(best)
        live = np.flatnonzero(~converged)
        for _ in range(steps):
            if not len(live):
                break
            part, current = self.rows(live), theta[live]
            step, gain = part.step(current, objective, damping[live])
            new = np.clip(current + step, low, high)
            reached = part.value(new, objective)
            better = reached < best[live]
            theta[live[better]], best[live[better]] = new[better], reached[better]
            damping[live] = np.where(better, np.maximum(damping[live] / 10, 1e-12), damping[live] * 8)
            is_done = (gain <= tolerance * best[live]) | (damping[live] > 1e12)
            converged[live[is_done]] = True
            live = live[~is_done]
        return Solved(theta, best, converged)

    @abstractmethod
    def search(self, objective: Objective) -> Solved:
        """The global minimum of a single fit, approximated by many starts."""

    @abstractmethod
    def is_free(self, theta: Floats) -> Bools:
        """Whether each parameter is off its bounds, for theta of shape (size,)."""

    @property
    def prior_precision(self) -> Floats:
        """Precision of the prior relative to that of the noise, shape (size,); 0 without a prior."""
        return np.zeros(self.size)

    def prior_value(self, theta: Floats) -> float:
        """The prior's part of the objective of a single fit, for theta of shape (size,)."""
        return 0.0

    def _columns(self, columns: Any) -> dict[str, Any]:
        """Fields with a value per run, restricted to ``columns``."""
        return {}

    def changed(self, **changes: Any) -> Self:
        """The same problem with some fields changed."""
        return replace(self, **changes)  # type: ignore[type-var]

    @property
    def independent(self) -> Self:
        """The same problem with uncorrelated errors."""
        return self.changed(trajectories=None, shrink=None)

    def rows(self, index: Ints) -> Self:
        """Select fits by index."""
        changes: dict[str, Any] = {"y": self.y[index] if self.y.ndim > 1 else self.y}
        for name in ("weights", "shrink"):
            value = getattr(self, name)
            changes[name] = value[index] if value is not None and value.ndim > 1 else value
        return replace(self, **changes)  # type: ignore[type-var]

    def select(self, accepted: Bools, rho: float = 0.0) -> Self:
        """The same problem with a subset of runs, in the same coordinates. Takes a single fit."""
        weights = None if self.weights is None else self.weights[accepted]
        changes: dict[str, Any] = {"y": self.y[accepted], "weights": weights, "trajectories": None, "shrink": None}
        part = self.changed(**changes, **self._columns(accepted))
        if self.trajectories is None:
            return part
        trajectories = Trajectories.of(np.unique(self.trajectories.number[accepted], return_inverse=True)[1])
        return part.changed(
            trajectories=trajectories, shrink=trajectories.shrink(rho, np.ones(int(accepted.sum())))
        )

    def with_correlation(self, trunk: Ints, rho: float) -> Self:
        """The same runs, with correlation ``rho`` within a trajectory. ``weights`` of each fit may be 0 or 1."""
        trajectories = self.trajectories or Trajectories.of(trunk)
        is_used = np.ones(len(trunk)) if self.weights is None else self.weights
        return self.changed(trajectories=trajectories, shrink=trajectories.shrink(rho, is_used))

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
