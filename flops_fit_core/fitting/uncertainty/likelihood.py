"""Profile-likelihood intervals: the values of a quantity for which a refit is not significantly worse.

For least squares with Gaussian noise of one level, RSS(value) <= RSS_min (1 + F / dof) with F the quantile of
F(1, dof) (Bates and Watts 1988, section 6.1.3). It follows the law's curvature where a bootstrap of few runs
is skewed, and takes one level of noise for all runs and no trunks, so it is off where under-trained runs are
noisier or runs share their luck: a check of the bootstrap, not its replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.optimize import least_squares as scipy_least_squares

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.forms import SURFACES
from flops_fit_core.fitting.laws.optima import minimise
from flops_fit_core.fitting.numerical_errors import guarded
from flops_fit_core.records import Interval, LawFit, Observation

_HOLD = 1e4
"""Weight of the residual that holds the quantity in place: off by 1e-4 of its step at most."""


@guarded
def profile_intervals(
    fit: LawFit, observations: Sequence[Observation], flops: Sequence[float] = ()
) -> dict[str, Interval]:
    """Intervals at the fit's level for E, alpha, beta, a, and ``params@C`` (N_opt) for each C of ``flops``.

    Noise is taken to be of one level for all runs, and theirs alone. ``observations`` are those that were fitted;
    those that the fit left out are left out again. An end that is not reached within twenty standard errors is
    None. Raises FitError for another law than parametric.
    """
    if fit.law.name != "parametric":
        raise FitError(f"profile likelihood is for law parametric, not {fit.law.name!r}")
    runs = Runs.of([one for one in observations if one.id not in fit.excluded])
    dof = len(runs) - 5
    if dof < 1:
        raise FitError(f"{len(runs)} runs leave nothing to judge five parameters by: train more")
    likelihood = _Likelihood(runs, fit)
    limit = likelihood.least * (1 + stats.f.ppf(fit.level, 1, dof) / dof)
    out = {}
    for name, (quantity, back) in likelihood.quantities(flops).items():
        low, high = (likelihood.end(quantity, side, limit, dof) for side in (-1, 1))
        value = float(back(quantity(likelihood.best)))
        out[name] = Interval(
            value=value,
            low=None if low is None else min(value, float(back(low))),
            high=None if high is None else max(value, float(back(high))),
        )
    return out


Quantity = Callable[[Floats], float]


class _Likelihood:
    """The sum of squares of ln L over theta = (E, ln A', alpha, ln B', beta), and of its profiles."""

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
        found = scipy_least_squares(self.residuals, start, bounds=_BOUNDS, xtol=1e-14, ftol=1e-14, gtol=1e-14)
        self.best: Floats = found.x
        self.least = 2 * float(found.cost)
        slopes = np.asarray(found.jac)
        self.covariance: Floats = np.linalg.pinv(slopes.T @ slopes)

    def residuals(self, theta: Floats) -> Floats:
        e, a, alpha, b, beta = theta
        loss = e + np.exp(a - alpha * (self.ln_params - self.x)) + np.exp(b - beta * (self.ln_tokens - self.z))
        out: Floats = self.y - np.log(np.maximum(loss, 1e-300))
        return out

    def quantities(self, flops: Sequence[float]) -> dict[str, tuple[Quantity, Callable[[float], float]]]:
        """Name -> quantity of theta, and how it is reported."""

        def same(value: float) -> float:
            return value

        out: dict[str, tuple[Quantity, Callable[[float], float]]] = {
            "E": (lambda theta: float(theta[0]), same),
            "alpha": (lambda theta: float(theta[2]), same),
            "beta": (lambda theta: float(theta[4]), same),
            "a": (self.exponent, same),
        }
        for c in flops:
            out[f"params@{c:g}"] = (lambda theta, c=c: self.ln_optimum(theta, np.log(c)), np.exp)  # type: ignore[misc]
        return out

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
        return float(minimise(SURFACES["parametric"], columns, self.constraint, float(np.exp(ln_flops)))[0][0])

    def exponent(self, theta: Floats) -> float:
        high = max(self.high, self.low + 1)
        return float((self.ln_optimum(theta, high) - self.ln_optimum(theta, self.low)) / (high - self.low))

    def end(self, quantity: Quantity, side: int, limit: float, dof: int) -> float | None:
        """The value at which the profile crosses ``limit`` on one side."""
        gradient = np.array([self._slope(quantity, index) for index in range(5)])
        error = float(np.sqrt(gradient @ self.covariance @ gradient * self.least / dof))
        best = quantity(self.best)
        if error == 0 or not np.isfinite(error):
            return best
        at, inner = self.best, 0.0
        for reach in (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0):
            theta, rss = self.held(quantity, best + side * reach * error, at)
            if rss > limit:
                start = at

                def excess(reach: float, start: Floats = start) -> float:
                    return self.held(quantity, best + side * reach * error, start)[1] - limit

                if excess(inner) > 0:
                    return best + side * inner * error
                return best + side * float(brentq(excess, inner, reach, xtol=1e-3)) * error
            at, inner = theta, reach
        return None

    def held(self, quantity: Quantity, value: float, start: Floats) -> tuple[Floats, float]:
        """The least sum of squares with the quantity held at a value."""
        scale = _HOLD * np.sqrt(self.least / len(self.y)) + 1e-9

        def residuals(theta: Floats) -> Floats:
            return np.append(self.residuals(theta), (quantity(theta) - value) * scale)

        found = scipy_least_squares(residuals, start, bounds=_BOUNDS, xtol=1e-11, ftol=1e-11, gtol=1e-11)
        return found.x, float(np.sum(self.residuals(found.x) ** 2))

    def _slope(self, quantity: Quantity, index: int) -> float:
        step = np.zeros(5)
        step[index] = 1e-5
        return (quantity(self.best + step) - quantity(self.best - step)) / 2e-5


_BOUNDS = ([-1e-12, -60.0, 0.004, -60.0, 0.004], [np.inf, 60.0, 3.1, 60.0, 3.1])
