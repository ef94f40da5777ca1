"""Robust least squares on ln L with a prior: Levenberg-Marquardt from several starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.curves.laws import Prior
from flops_fit_core.fitting.data import Floats

Model = Callable[[Floats], tuple[Floats, Floats]]
"""theta -> ln L and its gradient by theta: shapes (rows,) and (rows, parameters)."""
HUBER = 1.345
"""Residuals beyond this many scales count linearly (Huber 1964; 95% efficiency for normal noise)."""
MAX_STEPS = 200


@dataclass(frozen=True)
class Problem:
    """The sum over rows of weight * huber(residual / scale), plus the prior."""

    model: Model
    log_losses: Floats
    """Shape (rows,)."""
    weights: Floats
    """Shape (rows,): number of independent residuals per row."""
    scale: float
    """Robust standard deviation of a residual of ln L."""
    prior: Prior

    def residuals(self, theta: Floats) -> tuple[Floats, Floats]:
        """Residuals of which the objective is half the sum of squares, with their gradient.

        A row's residual is the signed square root of twice its Huber loss, so plain least squares is robust.
        """
        log_losses, slopes = self.model(theta)
        ratio = (log_losses - self.log_losses) / self.scale
        size = np.abs(ratio)
        outer = size > HUBER
        value = np.where(outer, np.sqrt(np.maximum(HUBER * (2 * size - HUBER), 0.0)), size) * np.sign(ratio)
        slope = np.where(outer, HUBER / np.maximum(np.abs(value), HUBER), 1.0)
        root = np.sqrt(self.weights)
        pull = self.prior.root @ (theta - self.prior.mean)
        rows = (root * slope / self.scale)[:, None] * slopes
        return np.concatenate([root * value, pull]), np.concatenate([rows, self.prior.root])


def minimise(problem: Problem, starts: Sequence[Floats]) -> Floats:
    """The best parameters over all starts. Raises FitError if no start gives a finite objective."""
    ends = [_descend(problem, start) for start in starts]
    best, value = min(ends, key=lambda end: end[1])
    if not np.isfinite(value):
        raise FitError("the loss curves do not determine the law: look at the units of step, lr and loss")
    return best


def _descend(problem: Problem, start: Floats) -> tuple[Floats, float]:
    """The end of a descent, and the objective there; infinite if it is not finite at the start."""
    with np.errstate(all="ignore"):
        theta, (residuals, slopes), damping = start, problem.residuals(start), 1e-2
        if not (np.all(np.isfinite(residuals)) and np.all(np.isfinite(slopes))):
            return theta, np.inf
        for _ in range(MAX_STEPS):
            value = float(residuals @ residuals)
            normal, downhill = slopes.T @ slopes, -slopes.T @ residuals
            scale = np.sqrt(np.maximum(np.diag(normal), 1e-12))
            system = normal / np.outer(scale, scale) + damping * np.eye(len(theta))
            step = np.linalg.solve(system, downhill / scale) / scale
            reached = problem.residuals(theta + step)
            if np.all(np.isfinite(reached[1])) and float(reached[0] @ reached[0]) < value:
                theta, (residuals, slopes), damping = theta + step, reached, max(damping / 8, 1e-12)
            else:
                damping *= 6
            if float(step @ downhill) <= 1e-8 * max(value, 1e-3) or damping > 1e12:
                break
        return theta, 0.5 * float(residuals @ residuals)
