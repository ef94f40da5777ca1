"""One regression for the IsoFLOP profiles of all budgets.

    L = L_k + c exp(-gamma z) h(ln N - n0 - a z),    z = ln C - mean,    L_k: lowest loss of budget k, free
    h(u) = k / (p q) ((q exp(-p u / k) + p exp(q u / k))^k / (p + q)^k - 1),    h'(0) = 0, h''(0) = 1

h is the exact profile of L = E + A N^-alpha + B D^-beta (k = 1, p = alpha, q = beta) and of L = E + A (N^-alpha +
R D^-beta)^k (p = k alpha, q = k beta) along C = 6 N D, with its curvature scaled to 1. On these surfaces gamma is
alpha beta / (alpha + beta) and a is beta / (alpha + beta); here both are free, and so is the lowest loss of each
budget, so the law of the optimum does not depend on a law of the loss.

The runs hardly determine p, q, k and gamma, which describe the skew and the flanks of the profiles. They have weak
priors. Least squares includes the prior as four further rows, scaled by the noise of the runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Ints

EXPONENT_PRIOR = (float(np.log(0.35)), 0.5)
"""Mean and standard deviation of ln p and ln q: loss exponents of language models lie between .15 and .6."""
POWER_PRIOR = (float(np.log(0.5)), 0.7)
"""Mean and standard deviation of ln k, between the sum of two power laws (k = 1) and a sharper transition."""
DECAY_PRIOR = (0.35 / 2, 0.1)
"""Mean and standard deviation of gamma. Two exponents of .35 give .35 / 2."""
PRIORS = np.array([DECAY_PRIOR, EXPONENT_PRIOR, EXPONENT_PRIOR, POWER_PRIOR])
SHAPE_PARAMETERS = len(PRIORS)
_SMALLEST_NOISE = 1e-8
"""Relative to the loss. The prior of exact runs gets this noise, so that the problem stays determined."""
_MAX_ROUNDS = 30
_MAX_EXPONENT = 300.0


def profile_shape(u: Floats, p: float, q: float, k: float) -> tuple[Floats, Floats, Floats]:
    """Shape h at u = ln N / N_opt, dh / du, and the derivatives in ln p, ln q and ln k, shape (3, n)."""
    total = p + q
    share = q / total
    left = np.exp(np.clip(-p * u / k, -_MAX_EXPONENT, _MAX_EXPONENT))
    right = np.exp(np.clip(q * u / k, -_MAX_EXPONENT, _MAX_EXPONENT))
    mean = share * left + (1 - share) * right
    ln_mean = np.log(mean)
    power = np.exp(k * ln_mean)
    scale = k / (p * q)
    h = scale * np.expm1(k * ln_mean)
    slope = power / mean * (right - left) * k / total
    outer = scale * k * power / mean
    by_p = outer * (-q / total**2 * (left - right) - share * u * left / k)
    by_q = outer * (p / total**2 * (left - right) + (1 - share) * u * right / k)
    by_k = outer * u / k**2 * (share * p * left - (1 - share) * q * right)
    derivatives = np.stack([p * by_p - h, q * by_q - h, h + k * (scale * power * ln_mean + by_k)])
    return h, slope, derivatives


@dataclass(frozen=True)
class ProfileRuns:
    """The runs of several budgets. ``x`` and ``z`` are centred; parameters and results use the same centres."""

    x: Floats
    """Ln N less a constant, shape (n,)."""
    z: Floats
    """Ln of the nominal budget less a constant, shape (n,)."""
    budget: Ints
    """Number of the run's budget, from 0, shape (n,)."""
    y: Floats
    """Ln L, or L, at the nominal budget, shape (n,)."""
    is_log: bool

    @property
    def budgets(self) -> int:
        return int(self.budget.max()) + 1

    @property
    def dof(self) -> int:
        """Degrees of freedom after the parameters without a prior."""
        return len(self.y) - self.budgets - 3

    def take(self, mask: Bools) -> ProfileRuns:
        """Select runs. Every budget must keep at least one."""
        return ProfileRuns(self.x[mask], self.z[mask], self.budget[mask], self.y[mask], self.is_log)

    def evaluate(self, theta: Floats) -> tuple[Floats, Floats]:
        """Response of every run, and its Jacobian (n, budgets + 7).

        ``theta`` holds L_k of each budget, c, n0, a, gamma, ln p, ln q, ln k.
        """
        c, n0, a, gamma, ln_p, ln_q, ln_k = theta[self.budgets :]
        u = self.x - n0 - a * self.z
        h, slope, derivatives = profile_shape(u, *(float(np.exp(value)) for value in (ln_p, ln_q, ln_k)))
        weight = np.exp(np.clip(-gamma * self.z, -_MAX_EXPONENT, _MAX_EXPONENT))
        loss = theta[self.budget] + c * weight * h
        by_optimum = -c * weight * slope
        jacobian = np.column_stack(
            [
                np.eye(self.budgets)[self.budget],
                weight * h,
                by_optimum,
                by_optimum * self.z,
                -c * weight * h * self.z,
                *(c * weight * derivatives),
            ]
        )
        if not self.is_log:
            return loss, jacobian
        positive = np.maximum(loss, 1e-9)
        return np.log(positive), jacobian / positive[:, None]


@dataclass(frozen=True)
class ProfileFit:
    """The least-squares fit. Rows of the prior follow the rows of the runs."""

    runs: ProfileRuns
    theta: Floats
    residuals: Floats
    """Fitted less measured, shape (n + 4,)."""
    jacobian: Floats
    """Derivatives of the residuals, shape (n + 4, budgets + 7)."""

    @property
    def lowest(self) -> Floats:
        """L_k: the lowest loss of each budget."""
        return self.theta[: self.runs.budgets]

    @property
    def curvature(self) -> float:
        """c: d^2 L / d(ln N)^2 at the optimum of z = 0."""
        return float(self.theta[self.runs.budgets])

    @property
    def line(self) -> tuple[float, float]:
        """(n0, a): ln N_opt is n0 + a z."""
        return float(self.theta[self.runs.budgets + 1]), float(self.theta[self.runs.budgets + 2])

    @property
    def rss(self) -> float:
        """Sum of squared residuals of the runs."""
        return float(np.sum(self.residuals[: len(self.runs.y)] ** 2))

    @property
    def sigma(self) -> float:
        """Standard deviation of the response; the prior counts as four rows."""
        return float(np.sqrt(self.residuals @ self.residuals / max(self.runs.dof, 1)))

    @property
    def offsets(self) -> Floats:
        """Ln N / N_opt of every run."""
        n0, a = self.line
        return self.runs.x - n0 - a * self.runs.z

    def linear_design(self) -> Floats:
        """The Jacobian in the parameters in which the response is nearly linear: c n0 and c a for n0 and a.

        A parabola is exactly linear in these: its slope is proportional to them.
        """
        design = self.jacobian.copy()
        design[:, [self.runs.budgets + 1, self.runs.budgets + 2]] /= self.curvature
        return design


def fit_profiles(runs: ProfileRuns, start: Floats | None = None) -> ProfileFit:
    """Least squares with the prior. Raises FitError if the profiles together do not bend upwards."""
    theta = _find_start(runs) if start is None else start
    free = runs.budgets + 3
    floor = _SMALLEST_NOISE * (1.0 if runs.is_log else float(np.mean(runs.y)))
    sigma = max(floor, float(np.sqrt(np.mean((runs.evaluate(theta)[0] - runs.y) ** 2))))
    for _ in range(_MAX_ROUNDS):
        weights = sigma / PRIORS[:, 1]
        prior_rows = np.zeros((SHAPE_PARAMETERS, free + SHAPE_PARAMETERS))
        prior_rows[:, free:] = np.diag(weights)

        def residuals(point: Floats, weights: Floats = weights) -> Floats:
            errors = runs.evaluate(point)[0] - runs.y
            return np.concatenate([errors, weights * (point[free:] - PRIORS[:, 0])])

        def jacobian(point: Floats, prior_rows: Floats = prior_rows) -> Floats:
            return np.vstack([runs.evaluate(point)[1], prior_rows])

        solved = least_squares(
            residuals,
            theta,
            jacobian,
            method="lm",
            x_scale="jac",
            xtol=1e-12,
            ftol=1e-14,
            gtol=1e-14,
            max_nfev=400,
        )
        theta = solved.x
        fit = ProfileFit(runs, theta, solved.fun, np.asarray(solved.jac))
        previous, sigma = sigma, max(floor, fit.sigma)
        if abs(sigma / previous - 1) < 1e-3:
            break
    if not np.isfinite(theta).all() or fit.curvature <= 0:
        raise FitError(NO_CURVATURE)
    return fit


NO_CURVATURE = (
    "the profiles of all budgets together do not bend upwards, so they have no minimum; widen the grids of sizes"
)


def _find_start(runs: ProfileRuns) -> Floats:
    """Parabolas with a shared curvature around a line: a linear problem for a fixed gamma."""
    loss = np.exp(runs.y) if runs.is_log else runs.y
    row_weight = 1 / loss if runs.is_log else np.ones_like(loss)
    weight = np.exp(np.clip(-DECAY_PRIOR[0] * runs.z, -_MAX_EXPONENT, _MAX_EXPONENT))
    columns = [weight * runs.x**2 / 2, weight * runs.x, weight * runs.x * runs.z]
    design = np.column_stack([np.eye(runs.budgets)[runs.budget], *columns])
    solution = np.linalg.lstsq(design * row_weight[:, None], loss * row_weight, rcond=None)[0]
    curvature, by_size, by_both = solution[runs.budgets :]
    if not curvature > 0:
        raise FitError(NO_CURVATURE)
    n0, a = -by_size / curvature, -by_both / curvature
    rest = loss - curvature * weight * (runs.x - n0 - a * runs.z) ** 2 / 2
    lowest = np.bincount(runs.budget, rest) / np.bincount(runs.budget)
    return np.concatenate([lowest, [curvature, n0, a], PRIORS[:, 0]])
