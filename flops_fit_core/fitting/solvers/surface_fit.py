"""A law fitted to runs, in the coordinates of its problem, and its refits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats
from flops_fit_core.fitting.laws.surfaces import LawSurface
from flops_fit_core.fitting.solvers.newton import ChinchillaProblem
from flops_fit_core.fitting.solvers.objectives import Objective
from flops_fit_core.fitting.solvers.problem import Problem, Solved


@dataclass(frozen=True)
class SurfaceFit:
    """A global fit."""

    problem: Problem
    theta: Floats
    """Shape (size,)."""
    value: float
    """The objective, without the prior's part."""
    residuals: Floats
    """ln L minus the fitted ln L."""
    jacobian: Floats
    """d ln L / d theta, shape (n, size)."""
    free: Bools
    """Shape (size,): False for a parameter on its bound."""
    converged: bool

    @property
    def parameters(self) -> dict[str, float]:
        """The law's parameters by name."""
        return {name: float(value[0]) for name, value in self.problem.values(self.theta[None]).items()}

    def surface(self, inputs: Mapping[str, float] | None = None) -> LawSurface:
        """The loss by N and D."""
        return LawSurface(self.problem.law, self.problem.values(self.theta[None]), dict(inputs or {}))

    @property
    def determined(self) -> bool:
        """Whether the runs and the prior determine every free parameter: no direction is flat to rounding."""
        design = np.concatenate([self.jacobian, np.diag(np.sqrt(self.problem.prior_precision))])[:, self.free]
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


def make_problem(ln_params: Floats, ln_tokens: Floats, ln_loss: Floats) -> ChinchillaProblem:
    """Centre ln N and ln D. Raises FitError for fewer than three values of either: its exponent has no meaning."""
    check_spread(ln_params, ln_tokens)
    centre = float(ln_params.mean()), float(ln_tokens.mean())
    return ChinchillaProblem(ln_params - centre[0], ln_tokens - centre[1], ln_loss, centre=centre)


def check_spread(ln_params: Floats, ln_tokens: Floats) -> None:
    """Raises FitError for fewer than three values of N or D."""
    for name, values in (("N", ln_params), ("D", ln_tokens)):
        distinct = len(np.unique(np.round(values, 4)))
        if distinct < 3:
            has = (
                f"all runs have the same {name}" if distinct == 1 else f"the runs have {distinct} values of {name}"
            )
            raise FitError(f"{has}: a law needs three or more; train runs that differ in {name}")


def fit_surface(problem: Problem, objective: Objective) -> SurfaceFit:
    """The global minimum, approximated by many starts."""
    return build_fit(problem, problem.search(objective))


def build_fit(problem: Problem, solved: Solved) -> SurfaceFit:
    """Build a SurfaceFit, with residuals and Jacobian, from a solution with one row."""
    theta = solved.theta[0]
    return SurfaceFit(
        problem,
        theta,
        float(solved.value[0]) - problem.prior_value(theta),
        problem.residuals(solved.theta)[0],
        problem.jacobian(solved.theta)[0].T,
        problem.is_free(theta),
        bool(solved.converged[0]),
    )


def refit(problem: Problem, start: Floats, objective: Objective) -> Solved:
    """Many fits from the same starting point, one per row of ``problem.y`` (fits, n) or of its weights."""
    fits = len(problem.y) if problem.y.ndim > 1 else len(np.atleast_2d(problem.weights))  # type: ignore[arg-type]
    return problem.solve(np.tile(start, (fits, 1)), objective, tolerance=1e-11)
