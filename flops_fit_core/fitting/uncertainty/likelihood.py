"""Profile-likelihood intervals: the values of a quantity for which a refit is not significantly worse.

For least squares with Gaussian noise of constant level, RSS(value) <= RSS_min (1 + F / dof) with F the quantile of
F(1, dof) (Bates and Watts 1988, section 6.1.3). It follows the curvature of the law, which a bootstrap of few runs
may skew. It assumes the same noise level for all runs and ignores trunks, so it is wrong if under-trained runs are
noisier or errors are correlated. It checks the bootstrap and does not replace it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.optimize import least_squares as scipy_least_squares

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.distributions import f_quantile
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import minimise
from flops_fit_core.fitting.laws.surfaces import LawSurface
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.records import Interval, LawFit, Observation

_CONSTRAINT_WEIGHT = 1e4
"""Weight of the residual that fixes the quantity: its error is at most 1e-4 of a step."""


@convert_numerical_errors
def profile_intervals(
    fit: LawFit,
    observations: Sequence[Observation],
    flops: Sequence[float] = (),
    report: Callable[[int, int, str, Interval | None], None] | None = None,
) -> dict[str, Interval]:
    """Intervals at the fit's level for E, alpha, beta, a, and ``params@C`` (N_opt) for each C of ``flops``.

    Assumes independent noise of equal level for all runs. ``observations`` are those given to the fitter; runs
    that the fit excluded are ignored. An end beyond twenty standard errors is None. ``report`` is called with the
    number of a quantity, their count, its name and None before each, and with its interval after it. Raises
    FitError for any law other than chinchilla.
    """
    if fit.law.name != "chinchilla":
        raise FitError(f"profile likelihood is for law chinchilla, not {fit.law.name!r}: use fitter parametric")
    runs = Runs.of([observation for observation in observations if observation.id not in fit.excluded])
    dof = len(runs) - 5
    if dof < 1:
        raise FitError(f"{len(runs)} runs leave no degree of freedom after five parameters: train 6 or more")
    likelihood = _Likelihood(runs, fit)
    limit = likelihood.least * (1 + f_quantile(fit.level, 1, dof) / dof)
    intervals: dict[str, Interval] = {}
    quantities = likelihood.quantities(flops)
    for number, (name, (quantity, transform)) in enumerate(quantities.items(), 1):
        if report is not None:
            report(number, len(quantities), name, None)
        low, high = (likelihood.find_end(quantity, side, limit, dof) for side in (-1, 1))
        value = float(transform(quantity(likelihood.best)))
        intervals[name] = Interval(
            value=value,
            low=None if low is None else min(value, float(transform(low))),
            high=None if high is None else max(value, float(transform(high))),
        )
        if report is not None:
            report(number, len(quantities), name, intervals[name])
    return intervals


Quantity = Callable[[Floats], float]


class _Likelihood:
    """Sum of squares of ln L over theta = (E, ln A', alpha, ln B', beta), and its profiles."""

    def __init__(self, runs: Runs, fit: LawFit) -> None:
        self.ln_params, self.ln_tokens = np.log(runs.params), np.log(runs.tokens)
        self.x, self.z = self.ln_params.mean(), self.ln_tokens.mean()
        self.y = np.log(runs.loss)
        self.constraint = FlopsPerToken.from_knots(fit.flops_per_token)
        self.low, self.high = np.log(fit.flops_range[0]), np.log(fit.flops_range[1])
        law = fit.law.parameters
        start = [
            law["E"],
            np.log(law["A"]) - law["alpha"] * self.x,
            law["alpha"],
            np.log(law["B"]) - law["beta"] * self.z,
            law["beta"],
        ]
        solution = scipy_least_squares(self.residuals, start, bounds=_BOUNDS, xtol=1e-14, ftol=1e-14, gtol=1e-14)
        self.best: Floats = solution.x
        self.least = 2 * float(solution.cost)
        slopes = np.asarray(solution.jac)
        self.covariance: Floats = np.linalg.pinv(slopes.T @ slopes)

    def residuals(self, theta: Floats) -> Floats:
        e, a, alpha, b, beta = theta
        loss = e + np.exp(a - alpha * (self.ln_params - self.x)) + np.exp(b - beta * (self.ln_tokens - self.z))
        residuals: Floats = self.y - np.log(np.maximum(loss, 1e-300))
        return residuals

    def quantities(self, flops: Sequence[float]) -> dict[str, tuple[Quantity, Callable[[float], float]]]:
        """Name -> quantity as a function of theta, and its transform for reporting."""

        def identity(value: float) -> float:
            return value

        quantities: dict[str, tuple[Quantity, Callable[[float], float]]] = {
            "E": (lambda theta: float(theta[0]), identity),
            "alpha": (lambda theta: float(theta[2]), identity),
            "beta": (lambda theta: float(theta[4]), identity),
            "a": (self.exponent, identity),
        }
        for c in flops:
            quantities[f"params@{c:g}"] = (lambda theta, c=c: self.ln_optimum(theta, np.log(c)), np.exp)  # type: ignore[misc]
        return quantities

    def ln_optimum(self, theta: Floats, ln_flops: float) -> float:
        e, a, alpha, b, beta = theta
        law = {
            "E": e,
            "A": np.exp(a + alpha * self.x),
            "B": np.exp(b + beta * self.z),
            "alpha": alpha,
            "beta": beta,
        }
        columns = {key: np.array([value]) for key, value in law.items()}
        surface = LawSurface(find_law("chinchilla"), columns)
        return float(minimise(surface, self.constraint, float(np.exp(ln_flops)))[0][0])

    def exponent(self, theta: Floats) -> float:
        high = max(self.high, self.low + 1)
        return float((self.ln_optimum(theta, high) - self.ln_optimum(theta, self.low)) / (high - self.low))

    def find_end(self, quantity: Quantity, side: int, limit: float, dof: int) -> float | None:
        """The value at which the profile crosses ``limit`` on one side."""
        gradient = np.array([self._slope(quantity, index) for index in range(5)])
        standard_error = float(np.sqrt(gradient @ self.covariance @ gradient * self.least / dof))
        best = quantity(self.best)
        if standard_error == 0 or not np.isfinite(standard_error):
            return best
        at, inside = self.best, 0.0
        for reach in (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0):
            theta, rss = self.solve_at(quantity, best + side * reach * standard_error, at)
            if rss > limit:
                start = at

                def excess(reach: float, start: Floats = start) -> float:
                    return self.solve_at(quantity, best + side * reach * standard_error, start)[1] - limit

                if excess(inside) > 0:
                    return best + side * inside * standard_error
                return best + side * float(brentq(excess, inside, reach, xtol=1e-3)) * standard_error
            at, inside = theta, reach
        return None

    def solve_at(self, quantity: Quantity, value: float, start: Floats) -> tuple[Floats, float]:
        """Theta and the least sum of squares with the quantity fixed at ``value``."""
        scale = _CONSTRAINT_WEIGHT * np.sqrt(self.least / len(self.y)) + 1e-9

        def residuals(theta: Floats) -> Floats:
            return np.append(self.residuals(theta), (quantity(theta) - value) * scale)

        solution = scipy_least_squares(residuals, start, bounds=_BOUNDS, xtol=1e-11, ftol=1e-11, gtol=1e-11)
        return solution.x, float(np.sum(self.residuals(solution.x) ** 2))

    def _slope(self, quantity: Quantity, index: int) -> float:
        step = np.zeros(5)
        step[index] = 1e-5
        return (quantity(self.best + step) - quantity(self.best - step)) / 2e-5


_BOUNDS = ([-1e-12, -60.0, 0.004, -60.0, 0.004], [np.inf, 60.0, 3.1, 60.0, 3.1])
