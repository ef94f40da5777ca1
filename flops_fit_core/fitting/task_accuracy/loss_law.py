"""Step 1: the law ``chinchilla`` with its prior, by robust least squares on ln L."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.laws.coordinates import Coordinates
from flops_fit_core.fitting.solvers.law_problem import LawProblem
from flops_fit_core.fitting.solvers.objectives import LeastSquares
from flops_fit_core.fitting.solvers.surface_fit import SurfaceFit, build_fit
from flops_fit_core.fitting.uncertainty.posterior import fit_with_prior, refit_with_prior, variance_of
from flops_fit_core.plugins.registry.law_index import find_law

_HUBER = 2.0
"""Residuals above this many standard deviations lose weight."""
_MAD = 1.4826
"""Standard deviation of normal errors divided by their median absolute deviation."""
_ROUNDS = 10
_MIN_NOISE = 1e-5


def chinchilla_loss(law: Mapping[str, Floats], ln_params: Floats, ln_tokens: Floats) -> Floats:
    """L of shape (fits, n), from parameters of shape (fits, 1)."""
    loss: Floats = find_law("chinchilla").loss(np.exp(ln_params), np.exp(ln_tokens), **law)
    return loss


@dataclass(frozen=True)
class LossFit:
    """The fitted law of a loss."""

    result: SurfaceFit
    problem: LawProblem
    """The runs with robust weights and the prior."""

    @classmethod
    def fit(cls, params: Floats, tokens: Floats, loss: Floats) -> LossFit:
        """Iteratively reweighted least squares on ln L, with the weights of Huber 1964."""
        means = {"params": float(np.log(params).mean()), "tokens": float(np.log(tokens).mean())}
        coordinates = Coordinates(find_law("chinchilla"), means)
        problem = LawProblem(coordinates, {"params": params, "tokens": tokens}, np.log(loss), np.ones(len(loss)))
        result = fit_with_prior(problem)
        inflation = np.sqrt(len(loss) / max(len(loss) - problem.size, 1))
        for _ in range(_ROUNDS):
            scale = max(_MAD * inflation * float(np.median(np.abs(result.residuals))), _MIN_NOISE)
            weights = np.minimum(1.0, _HUBER * scale / np.maximum(np.abs(result.residuals), 1e-300))
            problem = problem.changed(weights=weights).with_prior(max(variance_of(result), _MIN_NOISE**2))
            result = build_fit(problem, problem.solve(result.theta[None], LeastSquares()))
        return cls(result, problem)

    @property
    def point(self) -> dict[str, Floats]:
        """E, A, alpha, B and beta, each of shape (1,)."""
        return self.problem.values(self.result.theta[None])

    @property
    def fitted(self) -> Floats:
        """Ln L of the runs by the law, shape (n,)."""
        ln_loss: Floats = self.problem.predict(self.result.theta[None])[0]
        return ln_loss

    def refit(self, ln_loss: Floats, random: np.random.Generator) -> dict[str, Floats]:
        """Parameters of a fit to each row of ``ln_loss`` (fits, n), with means drawn from the prior."""
        return self.problem.values(refit_with_prior(self.problem, self.result.theta, ln_loss, random).theta)
