"""The posterior of the gain: a mixture of normal distributions over levels and shapes of the noise.

For each noise, the surface is linear in z near its most probable point, so that z has a normal posterior and the
noise a weight in closed form (the marginal likelihood). The mixture over levels of noise has the heavier tails of
a Student t distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp, ndtr
from scipy.stats import multivariate_normal, norm

from flops_fit_core.fitting.comparison.design import Design
from flops_fit_core.fitting.comparison.noise import LN_SIGMA, LN_SIGMA_SCALE, NoiseModel, prior_points
from flops_fit_core.fitting.comparison.surface import CHANGE, GAIN, TILT, WIDTH, SharedSurface
from flops_fit_core.fitting.data import Floats

POINTS, LEVELS = 64, 32
SMALLEST_NOISE, LARGEST_NOISE = 1e-7, 1.0
_SMALLEST_DECREASE = 1e-6
"""Predicted decrease of -2 ln posterior below which the search ends."""
_NEGLIGIBLE = 1e-6
"""Share of the weight below which a component is left out."""


@dataclass(frozen=True)
class NormalMixture:
    """A weighted sum of normal distributions of one quantity."""

    weights: Floats
    means: Floats
    deviations: Floats

    def cdf(self, value: float) -> float:
        return float(self.weights @ ndtr((value - self.means) / self.deviations))

    def quantile(self, probability: float) -> float:
        low = float(np.min(self.means - 12 * self.deviations))
        high = float(np.max(self.means + 12 * self.deviations))
        return float(brentq(lambda value: self.cdf(value) - probability, low, high, xtol=1e-6))


@dataclass(frozen=True)
class Posterior:
    """Components of the posterior: a noise and the normal distribution of z that it implies."""

    design: Design
    surface: SharedSurface
    z: Floats
    """The most probable z, of shape (10,), where the surface was made linear."""
    weights: Floats
    """Shape (components,), like the following arrays along their first axis; sums to 1."""
    points: Floats
    """x of the noise model."""
    sigmas: Floats
    axes: Floats
    """Shape (components, 10, 10): eigenvectors in columns."""
    means: Floats
    """Posterior mean of z along the axes."""
    variances: Floats
    """Posterior variance of z along the axes."""

    def along(self, direction: Floats) -> NormalMixture:
        """The posterior of ``direction`` z, for a direction of shape (10,)."""
        axes = np.einsum("i,sij->sj", direction, self.axes)
        deviations = np.sqrt((axes**2 * self.variances).sum(axis=1))
        return NormalMixture(self.weights, (axes * self.means).sum(axis=1), deviations)

    def ln_gain(self, flops: float) -> NormalMixture:
        """The posterior of ln g at a budget."""
        return self.along(self.surface.direction(flops))

    def change(self) -> NormalMixture:
        """The posterior of delta, the exponent of C in the gain."""
        direction = np.zeros(len(self.z))
        direction[CHANGE] = self.surface.scale[CHANGE]
        return self.along(direction)

    @property
    def most_probable(self) -> int:
        return int(np.argmax(self.weights))

    @property
    def degrees_of_freedom(self) -> float:
        """Runs minus the parameters that the runs, rather than the prior, determine."""
        determined = (1 - self.variances[self.most_probable]).sum()
        return float(max(len(self.design) - determined, 1))


def find_posterior(design: Design) -> Posterior:
    """The posterior for the runs of a design."""
    noise, surface = NoiseModel.of(design), SharedSurface.of(design)
    z = np.zeros(len(surface.centre))
    first_guess = next(noise.factors(np.zeros((1, noise.dimensions))))[1][0] * 0.003
    z = most_probable_z(surface, design.ln_loss, first_guess, z)
    points = prior_points(noise.dimensions, POINTS // 4)
    for _ in range(2):
        surface, z = surface.with_gain(z)
        posterior = linear_posterior(noise, surface, z, points, np.zeros(len(points)))
        best = posterior.most_probable
        factor = next(noise.factors(posterior.points[best : best + 1]))[1][0] * posterior.sigmas[best]
        z = most_probable_z(surface, design.ln_loss, factor, z)
    points = prior_points(noise.dimensions, POINTS)
    posterior = linear_posterior(noise, surface, z, points, np.zeros(len(points)))
    return linear_posterior(noise, surface, z, *improve_points(posterior, points))


def most_probable_z(surface: SharedSurface, ln_loss: Floats, factor: Floats, start: Floats) -> Floats:
    """Levenberg-Marquardt for the sum of squares of whitened residuals and of z."""
    z, damping = start, 1e-3

    whiten = np.linalg.inv(factor)

    def residuals(z: Floats) -> Floats:
        return np.concatenate([whiten @ (ln_loss - surface.predict(z)), -z])

    current = residuals(z)
    for _ in range(200):
        design = np.concatenate([whiten @ surface.jacobian(z), np.eye(len(z))])
        normal, gradient = design.T @ design, design.T @ current
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
        trial = residuals(z + step)
        if trial @ trial <= current @ current:
            z, current, damping = z + step, trial, damping / 5
            if gradient @ step < _SMALLEST_DECREASE:
                break
        else:
            damping *= 4
            if damping > 1e12:
                break
    return z


def linear_posterior(
    noise: NoiseModel, surface: SharedSurface, z: Floats, points: Floats, log_importance: Floats
) -> Posterior:
    """The posterior with the surface linear at ``z``, for noise points with the given importance weights."""
    jacobian = surface.jacobian(z)
    target = noise.design.ln_loss - surface.predict(z) + jacobian @ z
    columns = np.concatenate([jacobian, target[:, None]], axis=1)
    whitened, ln_determinants = [], []
    for _, factors in noise.factors(points):
        whitened.append(np.linalg.solve(factors, np.broadcast_to(columns, (len(factors), *columns.shape))))
        ln_determinants.append(np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1))
    white = np.concatenate(whitened)
    parameters, runs = len(z), len(target)
    values, axes = np.linalg.eigh(np.einsum("sni,snj->sij", white[..., :-1], white[..., :-1]))
    values = np.maximum(values, 0)
    along = np.einsum("sji,sj->si", axes, np.einsum("sni,sn->si", white[..., :-1], white[..., -1]))
    total = (white[..., -1] ** 2).sum(axis=1)
    constants = log_importance - np.concatenate(ln_determinants)
    ln_sigmas = np.linspace(np.log(SMALLEST_NOISE), np.log(LARGEST_NOISE), LEVELS)
    for _ in range(3):
        log_weights, shrunk = _log_weights(ln_sigmas, values, along, total, runs)
        log_weights += constants[:, None]
        ln_sigmas, last = _zoom(ln_sigmas, log_weights.max(axis=0)), ln_sigmas
    variances = np.exp(2 * last)[None, :, None]
    weights = np.exp(log_weights - logsumexp(log_weights))
    rows, columns_kept = np.nonzero(weights > _NEGLIGIBLE)
    kept = weights[rows, columns_kept]
    return Posterior(
        noise.design,
        surface,
        z,
        kept / kept.sum(),
        points[rows],
        np.exp(last)[columns_kept],
        axes[rows],
        (along[:, None, :] / shrunk)[rows, columns_kept].reshape(-1, parameters),
        np.broadcast_to(variances / shrunk, shrunk.shape)[rows, columns_kept].reshape(-1, parameters),
    )


def _log_weights(
    ln_sigmas: Floats, values: Floats, along: Floats, total: Floats, runs: int
) -> tuple[Floats, Floats]:
    """Ln of the marginal likelihood and prior at each noise point and level, and X'X + sigma^2 along the axes."""
    variances = np.exp(2 * ln_sigmas)[None, :, None]
    shrunk = values[:, None, :] + variances
    squares = (total[:, None] - (along[:, None, :] ** 2 / shrunk).sum(axis=2)) / variances[..., 0]
    log_weights = (
        -runs * ln_sigmas
        - 0.5 * np.log(shrunk / variances).sum(axis=2)
        - 0.5 * squares
        - 0.5 * ((ln_sigmas - LN_SIGMA) / LN_SIGMA_SCALE) ** 2
    )
    return log_weights, shrunk


def _zoom(ln_sigmas: Floats, log_weights: Floats) -> Floats:
    """Levels between those with a noticeable weight, and one step to each side."""
    rows = np.flatnonzero(log_weights > log_weights.max() - 16)
    low, high = max(rows[0] - 1, 0), min(rows[-1] + 1, len(ln_sigmas) - 1)
    return np.linspace(ln_sigmas[low], ln_sigmas[high], len(ln_sigmas))


def improve_points(posterior: Posterior, points: Floats) -> tuple[Floats, Floats]:
    """Points near the posterior of the noise added to points of the prior, with log importance weights."""
    mean = posterior.weights @ posterior.points
    offsets = posterior.points - mean
    covariance = 1.5 * (offsets.T * posterior.weights) @ offsets + 0.05 * np.eye(len(mean))
    near = mean + points @ np.linalg.cholesky(covariance).T
    both = np.concatenate([points, near])
    prior = norm.logpdf(both).sum(axis=1)
    proposal = multivariate_normal(mean, covariance).logpdf(both)
    return both, prior - np.logaddexp(prior, proposal)


def standard_error_at_gain(posterior: Posterior, ln_gain: float, flops: float) -> float:
    """Standard error of ln g(C) if the gain were ``ln_gain`` at all C, with the most probable noise."""
    best = posterior.most_probable
    z = posterior.z.copy()
    scale = posterior.surface.scale
    z[[GAIN, TILT, CHANGE, WIDTH]] = ln_gain / scale[GAIN], 0.0, 0.0, 0.0
    surface, z = posterior.surface.with_gain(z)
    noise = NoiseModel.of(posterior.design)
    factor = next(noise.factors(posterior.points[best : best + 1]))[1][0] * posterior.sigmas[best]
    jacobian = np.linalg.solve(factor, surface.jacobian(z))
    covariance = np.linalg.inv(jacobian.T @ jacobian + np.eye(len(z)))
    direction = surface.direction(flops)
    return float(np.sqrt(direction @ covariance @ direction))
