"""Damped Gauss-Newton for any law of a few parameters, vectorised over fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs
from flops_fit_core.fitting.laws.coordinates import Coordinates
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares, Objective
from flops_fit_core.fitting.solvers.problem import Problem, Solved, Trajectories
from flops_fit_core.plugins.protocols.laws import LossLaw

_KEPT_STARTS = 12
"""Starting points from which the solver iterates; the others have a higher objective at the start."""


@dataclass(frozen=True)
class LawProblem(Problem):
    """The runs of one or many fits, and a law in its coordinates.

    The objective is that of the residuals plus sum(``stiffness`` (theta - ``centre``)^2) / 2.
    """

    coordinates: Coordinates
    inputs: Mapping[str, Floats]
    """Each input of the law, shape (n,)."""
    y: Floats
    """Ln L, or L for a law of the loss, over ``noise``."""
    weights: Floats | None = None
    trajectories: Trajectories | None = None
    shrink: Floats | None = None
    centre: Floats | None = None
    """Mean of the prior, shape (size,) or (fits, size); None without a prior."""
    stiffness: Floats | float = 0.0
    """Variance of the noise divided by that of the prior, shape (size,)."""
    noise: Floats | None = None
    """Noise of each run relative to the most precise run, shape (n,); None for 1.

    Residuals and Jacobians are divided by it, so that the noise of all rows has one level.
    """

    @classmethod
    def of(cls, law: LossLaw, runs: Runs, inputs: Mapping[str, Floats]) -> Self:
        """The problem without a prior. ``inputs`` has the law's inputs, each of shape (n,)."""
        means = {name: float(np.mean(np.log(inputs[name]))) for name in law.inputs}
        y = (np.log(runs.loss) if law.response == "log-loss" else runs.loss) / runs.noise
        noise = runs.noise if (runs.noise != 1).any() else None
        return cls(Coordinates(law, means), {name: inputs[name] for name in law.inputs}, y, noise=noise)

    @property
    def law(self) -> LossLaw:
        return self.coordinates.law

    @property
    def size(self) -> int:
        return len(self.coordinates.names)

    def values(self, theta: Floats) -> dict[str, Floats]:
        return self.coordinates.values(theta)

    def with_prior(self, variance: float) -> Self:
        """The same problem with the law's prior, for noise of this variance in ``y``."""
        mean, precision = self.coordinates.prior
        if not precision.any():
            return self
        return replace(self, centre=mean, stiffness=precision * variance)

    @property
    def prior_precision(self) -> Floats:
        return np.zeros(self.size) + self.stiffness

    def prior_value(self, theta: Floats) -> float:
        return 0.0 if self.centre is None else float(np.sum((theta - self.centre) ** 2 * self.stiffness)) / 2

    def predict(self, theta: Floats) -> Floats:
        """The fitted ``y``, shape (fits, n); NaN where the law gives no positive loss."""
        loss = self.coordinates.loss(theta, self.inputs)
        fitted = np.log(loss) if self.law.response == "log-loss" else loss
        return fitted if self.noise is None else fitted / self.noise

    def residuals(self, theta: Floats) -> Floats:
        return self.y - self.predict(theta)

    def jacobian(self, theta: Floats) -> Floats:
        return self._linearise(theta)[1] * self.coordinates.is_free(theta)[:, :, None]

    def is_free(self, theta: Floats) -> Bools:
        return self.coordinates.is_free(theta)

    def is_undertrained(self, theta: Floats) -> Bools:
        slopes = [self._slope(theta, name) for name in ("params", "tokens")]
        is_undertrained: Bools = slopes[1] < slopes[0]
        return is_undertrained

    def search(self, objective: Objective) -> Solved:
        """From the best starting points of the law, with few steps, and from the best three to the end."""
        starts = np.clip(
            self.coordinates.starting_points(self.inputs, float(np.exp(np.mean(np.log(np.abs(self._loss)))))),
            *self.coordinates.bounds,
        )
        order = np.argsort(self.value(starts, objective), kind="stable")[:_KEPT_STARTS]
        first = self.solve(starts[order], LeastSquares(), steps=25, tolerance=1e-3)
        order = np.argsort(first.value, kind="stable")[:3]
        solved = self.solve(first.theta[order], LeastSquares()).best()
        if not isinstance(objective, Huber):
            return solved
        return self.solve(solved.theta, objective)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        return self.coordinates.bounds

    def rows(self, index: Ints) -> Self:
        part = super().rows(index)
        if self.centre is not None and self.centre.ndim > 1:
            part = replace(part, centre=self.centre[index])
        return part

    def _columns(self, columns: Any) -> dict[str, Any]:
        return {
            "inputs": {name: values[columns] for name, values in self.inputs.items()},
            "noise": None if self.noise is None else self.noise[columns],
        }

    @property
    def _loss(self) -> Floats:
        y: Floats = np.atleast_2d(self.y)[0]
        y = y if self.noise is None else y * self.noise
        return np.exp(y) if self.law.response == "log-loss" else y

    def _slope(self, theta: Floats, name: str) -> Floats:
        """Derivative of the loss by ln input, shape (fits, n); 0 for an input that the law does not have."""
        if name not in self.inputs:
            return np.zeros((len(theta), self.y.shape[-1]))
        moved: dict[str, Any] = {**self.inputs, name: self.inputs[name] * (1 + 1e-30j)}
        slope: Floats = np.imag(self.coordinates.loss(theta, moved)) / 1e-30
        return slope

    def _linearise(self, theta: Floats) -> tuple[Floats, Floats]:
        """The fitted ``y`` (fits, n), and its derivatives by theta (fits, size, n)."""
        fitted, gradient = self.coordinates.loss_and_gradient(theta, self.inputs)
        if self.law.response == "log-loss":
            fitted, gradient = np.log(fitted), gradient / fitted[:, None]
        return (fitted, gradient) if self.noise is None else (fitted / self.noise, gradient / self.noise)

    def value(self, theta: Floats, objective: Objective) -> Floats:
        with np.errstate(all="ignore"):
            r = self.residuals(theta)
            if self.trajectories is not None:
                total = np.einsum("fi,fi->f", r, self.precision(r)) / 2
            else:
                rho = objective.rho(r)
                total = rho.sum(axis=1) if self.weights is None else (self.weights * rho).sum(axis=1)
            if self.centre is not None:
                total = total + ((theta - self.centre) ** 2 * self.stiffness).sum(axis=1) / 2
        return np.where(np.isfinite(total), total, np.inf)

    def step(self, theta: Floats, objective: Objective, damping: Floats) -> tuple[Floats, Floats]:
        """A damped step, and its predicted reduction of the objective.

        Of the Hessian, only the part from first derivatives; a Huber residual has the weight psi(r) / r.
        """
        fitted, slopes = self._linearise(theta)
        r = self.y - fitted
        if self.trajectories is not None:
            psi, weighted = self.precision(r), self.precision(slopes)
        else:
            weight = objective.psi(r) / np.where(r == 0, 1.0, r) + (r == 0)
            if self.weights is not None:
                weight = weight * self.weights
            psi, weighted = weight * r, slopes * weight[:, None]
        downhill = (slopes @ psi[:, :, None])[:, :, 0]
        normal = weighted @ slopes.transpose(0, 2, 1)
        if self.centre is not None:
            downhill = downhill - (theta - self.centre) * self.stiffness
            normal = normal + np.eye(self.size) * self.stiffness
        low, high = self.coordinates.bounds
        at_bound = ((theta <= low) & (downhill < 0)) | ((theta >= high) & (downhill > 0))
        downhill = np.where(at_bound, 0.0, downhill)
        normal = np.where(at_bound[:, :, None] | at_bound[:, None, :], 0.0, normal)
        diagonal = np.einsum("fpp->fp", normal)
        scale = np.where(at_bound, 1.0, 1 / np.sqrt(np.maximum(diagonal, 1e-300)))
        scaled = normal * scale[:, :, None] * scale[:, None, :]
        ridge = (damping[:, None] + 1e-13) * np.ones(self.size) + at_bound
        scaled = scaled + ridge[:, :, None] * np.eye(self.size)
        scaled = np.nan_to_num(scaled, posinf=0.0, neginf=0.0)
        right: Floats = np.nan_to_num(downhill * scale).astype(np.float64)
        step = np.asarray(np.linalg.solve(scaled, right[:, :, None])[:, :, 0] * scale, dtype=np.float64)
        return step, (step * downhill).sum(axis=1)
