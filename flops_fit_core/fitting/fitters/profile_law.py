"""One regression for the IsoFLOP profiles of all budgets.

    L = L_k + c exp(-gamma z) h(ln N - n0 - a z),    z = ln C - mean,    L_k: lowest loss of budget k, free
    h(u) = k / (p q) ((q exp(-p u / k) + p exp(q u / k))^k / (p + q)^k - 1),    h'(0) = 0, h''(0) = 1

h is the exact profile of L = E + A N^-alpha + B D^-beta (k = 1, p = alpha, q = beta) and of L = E + A (N^-alpha +
R D^-beta)^k (p = k alpha, q = k beta) along C = 6 N D, with its curvature scaled to 1. On these surfaces a, gamma
and c follow from p, q, k and the L_k. Here all are free, with the weak priors of :mod:`profile_prior`. Least
squares includes the prior as further rows, scaled by the noise of the runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import linalg
from scipy.optimize import least_squares

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Ints
from flops_fit_core.fitting.distributions import t_upper_quantile
from flops_fit_core.fitting.fitters.profile_prior import (
    DECAY_MEAN,
    SHAPE_MEANS,
    SHAPE_ROWS,
    evaluate_prior,
    expected_curvature,
)

_SMALLEST_NOISE = 1e-8
"""Relative to the loss. The prior of exact runs gets this noise, so that the problem stays determined."""
_MAX_ROUNDS = 30
_CONCAVE_CHANCE = 0.01
"""Chance that profiles with Gaussian noise and no curvature count as bending downwards."""
_MAX_EXPONENT = 300.0


def profile_shape(u: Floats, p: Floats, q: Floats, k: Floats) -> tuple[Floats, Floats, Floats]:
    """Shape h at u = ln N / N_opt (..., n), dh / du, and the derivatives in ln p, ln q and ln k (3, ..., n)."""
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

    @cached_property
    def budgets(self) -> int:
        return int(self.budget.max()) + 1

    @property
    def dof(self) -> int:
        """Degrees of freedom after the L_k, c, n0 and a."""
        return len(self.y) - self.budgets - 3

    def take(self, mask: Bools) -> ProfileRuns:
        """Select runs. Every budget must keep at least one."""
        return ProfileRuns(self.x[mask], self.z[mask], self.budget[mask], self.y[mask], self.is_log)

    @cached_property
    def budget_z(self) -> Floats:
        """``z`` of every budget."""
        z: Floats = np.bincount(self.budget, self.z) / np.bincount(self.budget)
        return z

    def evaluate(self, theta: Floats) -> tuple[Floats, Floats]:
        """Response of every run (..., n), and its Jacobian (..., n, budgets + 7), for theta (..., budgets + 7).

        ``theta`` holds L_k of each budget, ln c, n0, a, gamma, ln p, ln q, ln k.
        """
        budgets = self.budgets
        ln_c, n0, a, gamma, ln_p, ln_q, ln_k = np.moveaxis(theta[..., budgets:, None], -2, 0)
        u = self.x - n0 - a * self.z
        h, slope, derivatives = profile_shape(u, np.exp(ln_p), np.exp(ln_q), np.exp(ln_k))
        weight = np.exp(np.clip(ln_c - gamma * self.z, -_MAX_EXPONENT, _MAX_EXPONENT))
        excess, by_optimum = weight * h, -weight * slope
        loss = theta[..., self.budget] + excess
        jacobian = np.empty((*loss.shape, theta.shape[-1]))
        jacobian[..., :budgets] = np.eye(budgets)[self.budget]
        shape_columns = [excess, by_optimum, by_optimum * self.z, -excess * self.z, *(weight * derivatives)]
        jacobian[..., budgets:] = np.stack(shape_columns, axis=-1)
        if not self.is_log:
            return loss, jacobian
        positive = np.maximum(loss, 1e-9)
        return np.log(positive), jacobian / positive[..., None]

    def evaluate_errors(self, theta: Floats, sigma: float) -> tuple[Floats, Floats]:
        """Fitted less measured of the runs and of the prior (..., n + 6), and its Jacobian.

        The prior is scaled by ``sigma``, the standard deviation of the response.
        """
        response, jacobian = self.evaluate(theta)
        prior, prior_jacobian = evaluate_prior(theta, self.budget_z)
        errors = np.concatenate([response - self.y, sigma * prior], axis=-1)
        return errors, np.concatenate([jacobian, sigma * prior_jacobian], axis=-2)


@dataclass(frozen=True)
class ProfileFit:
    """The least-squares fit. Rows of the prior follow the rows of the runs."""

    runs: ProfileRuns
    theta: Floats
    residuals: Floats
    """Fitted less measured, shape (n + 6,)."""
    jacobian: Floats
    """Derivatives of the residuals, shape (n + 6, budgets + 7)."""

    @property
    def lowest(self) -> Floats:
        """L_k: the lowest loss of each budget."""
        return self.theta[: self.runs.budgets]

    @property
    def curvature(self) -> float:
        """c: d^2 L / d(ln N)^2 at the optimum of z = 0."""
        return float(np.exp(self.theta[self.runs.budgets]))

    @property
    def line(self) -> tuple[float, float]:
        """(n0, a): ln N_opt is n0 + a z."""
        return float(self.theta[self.runs.budgets + 1]), float(self.theta[self.runs.budgets + 2])

    @property
    def rss(self) -> float:
        """Sum of squared residuals of the runs."""
        return float(np.sum(self.residuals[: len(self.runs.y)] ** 2))

    @cached_property
    def dof(self) -> float:
        """Degrees of freedom of :attr:`rss`: trace of (I - H)^2 for the runs' hat matrix H, at least 1.

        The prior determines a part of the shape; that part costs no degrees of freedom.
        """
        count = len(self.runs.y)
        scale = np.maximum(np.sqrt((self.jacobian**2).sum(axis=0)), 1e-300)
        basis = np.linalg.qr(self.jacobian / scale)[0][:count]
        return max(1.0, float(count - 2 * np.sum(basis**2) + np.sum((basis.T @ basis) ** 2)))

    @property
    def sigma(self) -> float:
        """Standard deviation of the response."""
        return float(np.sqrt(self.rss / self.dof))

    @property
    def offsets(self) -> Floats:
        """Ln N / N_opt of every run."""
        n0, a = self.line
        return self.runs.x - n0 - a * self.runs.z

    def determined_directions(self) -> Floats:
        """Directions of theta that the runs determine, shape (budgets + 7, k).

        These are L_k, ln c, n0 and a, and the directions of gamma, p, q and k with more information from the
        runs than from the prior. Tests of the residuals, and the noise of the runs, take these as free and the
        others as fixed. The prior must not count as further runs: if the truth is close to the prior mean, its
        rows have small errors, and the noise would seem smaller than it is.
        """
        n, main = len(self.runs.y), self.runs.budgets + 3
        jacobian = self.jacobian / max(self.sigma, _SMALLEST_NOISE)
        scale = np.maximum(np.sqrt((jacobian[:n, :main] ** 2).sum(axis=0)), 1e-300)
        basis = np.linalg.qr(jacobian[:n, :main] / scale)[0]
        shape = jacobian[:n, main:] - basis @ (basis.T @ jacobian[:n, main:])
        prior = jacobian[n : n + SHAPE_ROWS, main:]
        information, vectors = linalg.eigh(shape.T @ shape, prior.T @ prior)
        most = max(self.runs.dof // 2, 0)
        vectors = vectors[:, information > 1]
        vectors = vectors[:, max(vectors.shape[1] - most, 0) :]
        return np.asarray(linalg.block_diag(np.eye(main), vectors))


def fit_profiles(runs: ProfileRuns, start: Floats | None = None) -> ProfileFit:
    """Least squares with the prior. Raises FitError if the profiles together bend downwards by more than noise."""
    theta = _find_start(runs) if start is None else start
    floor = _SMALLEST_NOISE * (1.0 if runs.is_log else float(np.mean(runs.y)))
    sigma = max(floor, float(np.sqrt(np.mean((runs.evaluate(theta)[0] - runs.y) ** 2))))
    for _ in range(_MAX_ROUNDS):
        fit = _solve(runs, theta, sigma)
        theta = fit.theta
        previous, sigma = sigma, max(floor, fit.sigma)
        if abs(sigma / previous - 1) < 1e-3:
            break
    if not np.isfinite(theta).all():
        raise FitError(NO_CURVATURE)
    return fit


def _solve(runs: ProfileRuns, theta: Floats, sigma: float) -> ProfileFit:
    """Least squares from theta, with the prior of runs with noise sigma."""

    # The solver asks for the residuals and the Jacobian at a point in two calls.
    @lru_cache(maxsize=1)
    def evaluate(point: bytes) -> tuple[Floats, Floats]:
        return runs.evaluate_errors(np.frombuffer(point), sigma)

    def residuals(point: Floats) -> Floats:
        return evaluate(point.tobytes())[0]

    def jacobian(point: Floats) -> Floats:
        return evaluate(point.tobytes())[1]

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
    return ProfileFit(runs, solved.x, solved.fun, np.asarray(solved.jac))


NO_CURVATURE = (
    "the profiles of all budgets together do not bend upwards, so they have no minimum; widen the grids of sizes"
)


def _find_start(runs: ProfileRuns) -> Floats:
    """Parabolas with a shared curvature around a line: a linear problem for a fixed gamma."""
    loss = np.exp(runs.y) if runs.is_log else runs.y
    row_weight = 1 / loss if runs.is_log else np.ones_like(loss)
    weight = np.exp(np.clip(-DECAY_MEAN * runs.z, -_MAX_EXPONENT, _MAX_EXPONENT))
    columns = [weight * runs.x**2 / 2, weight * runs.x, weight * runs.x * runs.z]
    design = np.column_stack([np.eye(runs.budgets)[runs.budget], *columns]) * row_weight[:, None]
    solution = np.linalg.lstsq(design, loss * row_weight, rcond=None)[0]
    curvature = solution[runs.budgets]
    least = expected_curvature(np.bincount(runs.budget, loss) / np.bincount(runs.budget), runs.budget_z) / 5
    if curvature < least:
        if _is_concave(design, loss * row_weight, solution, runs.budgets):
            raise FitError(NO_CURVATURE)
        # Noise hides the curvature: start from a small share of the curvature that the prior expects.
        curvature = least
        rest = loss - curvature * weight * runs.x**2 / 2
        solution = np.linalg.lstsq(np.delete(design, runs.budgets, axis=1), rest * row_weight, rcond=None)[0]
        solution = np.insert(solution, runs.budgets, curvature)
    by_size, by_both = solution[runs.budgets + 1 :]
    n0, a = -by_size / curvature, -by_both / curvature
    rest = loss - curvature * weight * (runs.x - n0 - a * runs.z) ** 2 / 2
    lowest = np.bincount(runs.budget, rest) / np.bincount(runs.budget)
    return np.concatenate([lowest, [np.log(curvature), n0, a], SHAPE_MEANS])


def _is_concave(design: Floats, y: Floats, solution: Floats, column: int) -> bool:
    """Whether the curvature, column ``column``, is below 0 by more than noise explains."""
    errors, dof = y - design @ solution, len(y) - len(solution)
    if dof < 1:
        return bool(solution[column] <= 0)
    variance = np.linalg.pinv(design.T @ design)[column, column] * (errors @ errors) / dof
    return bool(solution[column] < -t_upper_quantile(_CONCAVE_CHANCE, dof) * np.sqrt(variance))
