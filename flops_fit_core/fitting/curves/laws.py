"""Laws of the loss along a run, with gradients.

S1(t) is the sum of the learning rates of the first t updates, warmup included. A change k of the rate is from
eta_{k-1} to eta_k, and S_k(t) is the sum of the rates from update k to t.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.curves.changes import RateChanges
from flops_fit_core.fitting.data import Floats


@dataclass(frozen=True)
class CurveScale:
    """Units in which a fit computes: parameters of size 1, whatever the unit of the learning rate."""

    peak: float
    """The highest learning rate of the fitted curves."""
    updates: float
    """A typical sum of rates divided by ``peak``, where the power term is measured."""
    loss: float
    """A typical loss, in nats."""


@dataclass(frozen=True)
class Prior:
    """A normal prior of the parameters: ``root @ (theta - mean)`` has independent elements of variance 1."""

    mean: Floats
    root: Floats
    """Shape (elements, parameters)."""

    @classmethod
    def independent(cls, mean: Sequence[float], width: Sequence[float]) -> Prior:
        """With a standard deviation for each parameter; an infinite width is no prior."""
        return cls(np.array(mean), np.diag(1 / np.array(width)))


class CurveLaw(ABC):
    """A law L(t) = L0 + A S1(t)^-a - decay(t), fitted in scaled parameters."""

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    """Names of the parameters as published."""
    decay: ClassVar[slice]
    """The scaled parameters of the decay term."""

    @abstractmethod
    def losses(self, theta: Floats, changes: RateChanges, scale: CurveScale) -> tuple[Floats, Floats]:
        """L of each evaluation, shape (evaluations,), and its gradient by theta, (evaluations, parameters)."""

    @abstractmethod
    def prior(self, scale: CurveScale) -> Prior:
        """The prior of the scaled parameters."""

    @abstractmethod
    def starts(self, scale: CurveScale) -> list[Floats]:
        """Starting points of a fit."""

    @abstractmethod
    def published(self, theta: Floats, scale: CurveScale) -> dict[str, float]:
        """The parameters as published, for rates in the user's unit."""

    @abstractmethod
    def scaled(self, parameters: dict[str, float], scale: CurveScale) -> Floats:
        """The inverse of :meth:`published`."""


def _power_term(theta: Floats, changes: RateChanges, scale: CurveScale) -> tuple[Floats, Floats]:
    """L0 + A S1^-a from ln L0, ln of the power term at ``scale.updates``, and a; with its gradient by the
    three."""
    log_sum = np.log(changes.sums / scale.updates)
    floor = np.exp(theta[0])
    power = np.exp(theta[1] - theta[2] * log_sum)
    return floor + power, np.stack([np.full(len(power), floor), power, -power * log_sum], axis=1)


class MultiPowerLaw(CurveLaw):
    """L = L0 + A S1^-a - B sum_k (eta_{k-1} - eta_k) (1 - (1 + C eta_k^-g S_k)^-b).

    Luo et al. 2025 (arXiv 2503.12811), section 3. Scaled parameters: ln L0, ln of the power term at
    ``scale.updates``, a, ln(B peak), ln(C peak^(1-g)), b, g. The fifth is the inverse of the number of updates at
    the peak over which a small fall takes effect.
    """

    name = "multi-power"
    parameters = ("L0", "A", "a", "B", "C", "b", "g")
    decay = slice(3, 7)

    def losses(self, theta: Floats, changes: RateChanges, scale: CurveScale) -> tuple[Floats, Floats]:
        base, base_slopes = _power_term(theta, changes, scale)
        amplitude, b, g = np.exp(theta[3]), theta[5], theta[6]
        log_x = theta[4] - g * changes.log_rate + changes.log_sum
        log_1_x = np.logaddexp(0.0, log_x)
        remaining = np.exp(-b * log_1_x)
        slope = changes.drop * remaining * b * np.exp(log_x - log_1_x)
        effects = (
            changes.drop * (1.0 - remaining),
            slope,
            changes.drop * remaining * log_1_x,
            slope * changes.log_rate,
        )
        totals = amplitude * changes.total(np.stack(effects, axis=1))
        signs = np.array([-1.0, -1.0, -1.0, 1.0])
        return base - totals[:, 0], np.concatenate([base_slopes, signs * totals], axis=1)

    def prior(self, scale: CurveScale) -> Prior:
        """The mean of the three published fits (25M, 100M, 400M), with about twenty times their spread.

        Without it, b and g follow the noise: one jump and one cosine hardly determine them. The spread of the
        published values is 0.04 (a), 0.11 (ln of the fifth parameter), 0.008 (b), 0.010 (g).
        """
        inf = math.inf
        return Prior.independent(
            [0.0, 0.0, 0.46, math.log(0.045 * scale.loss), math.log(0.115), 0.59, 0.64],
            [inf, inf, 0.5, 1.0, 2.0, 0.2, 0.2],
        )

    def starts(self, scale: CurveScale) -> list[Floats]:
        mean = self.prior(scale).mean
        return [
            np.array([math.log(floor * scale.loss), math.log((1 - floor) * scale.loss), a, *mean[3:]])
            for floor, a in ((0.9, 0.5), (0.75, 0.35), (0.97, 0.7))
        ]

    def published(self, theta: Floats, scale: CurveScale) -> dict[str, float]:
        a, g = theta[2], theta[6]
        values = (
            math.exp(theta[0]),
            math.exp(theta[1] + a * math.log(scale.updates * scale.peak)),
            a,
            math.exp(theta[3]) / scale.peak,
            math.exp(theta[4] + (g - 1) * math.log(scale.peak)),
            theta[5],
            g,
        )
        return dict(zip(self.parameters, map(float, values), strict=True))

    def scaled(self, parameters: dict[str, float], scale: CurveScale) -> Floats:
        floor, amplitude, a, size, speed, b, g = (parameters[name] for name in self.parameters)
        return np.array(
            [
                math.log(floor),
                math.log(amplitude) - a * math.log(scale.updates * scale.peak),
                a,
                math.log(size * scale.peak),
                math.log(speed) - (g - 1) * math.log(scale.peak),
                b,
                g,
            ]
        )


class AnnealingLaw(CurveLaw):
    """L = L0 + A S1^-a - C S2, with S2 = sum_{i <= t} sum_{k <= i} (eta_{k-1} - eta_k) lambda^(i-k).

    Tissue et al. 2024 (arXiv 2408.11029). S2 = sum_k (eta_{k-1} - eta_k) (1 - lambda^(t-k)) / (1 - lambda), so the
    fall of the loss after a change saturates after some 1 / (1 - lambda) updates. Scaled parameters: ln L0, ln of
    the power term at ``scale.updates``, a, ln(C peak / (1 - lambda)), ln(-1 / ln lambda).
    """

    name = "annealing"
    parameters = ("L0", "A", "a", "C", "lambda")
    decay = slice(3, 5)

    def losses(self, theta: Floats, changes: RateChanges, scale: CurveScale) -> tuple[Floats, Floats]:
        base, base_slopes = _power_term(theta, changes, scale)
        amplitude = np.exp(theta[3])
        share = changes.updates * np.exp(-theta[4])
        effects = -changes.drop * np.expm1(-share), -changes.drop * np.exp(-share) * share
        totals = amplitude * changes.total(np.stack(effects, axis=1))
        return base - totals[:, 0], np.concatenate([base_slopes, -totals], axis=1)

    def prior(self, scale: CurveScale) -> Prior:
        """A weak prior: the paper fixes lambda between 0.99 and 0.999."""
        inf = math.inf
        return Prior.independent(
            [0.0, 0.0, 0.46, math.log(0.045 * scale.loss), math.log(300.0)], [inf, inf, 0.5, 1.0, 1.5]
        )

    def starts(self, scale: CurveScale) -> list[Floats]:
        mean = self.prior(scale).mean
        return [
            np.array(
                [math.log(floor * scale.loss), math.log((1 - floor) * scale.loss), a, mean[3], math.log(life)]
            )
            for floor, a in ((0.9, 0.5), (0.75, 0.35))
            for life in (30.0, 300.0, 3000.0)
        ]

    def published(self, theta: Floats, scale: CurveScale) -> dict[str, float]:
        decay_rate = math.exp(-theta[4])
        values = (
            math.exp(theta[0]),
            math.exp(theta[1] + theta[2] * math.log(scale.updates * scale.peak)),
            theta[2],
            -math.exp(theta[3]) / scale.peak * math.expm1(-decay_rate),
            math.exp(-decay_rate),
        )
        return dict(zip(self.parameters, map(float, values), strict=True))

    def scaled(self, parameters: dict[str, float], scale: CurveScale) -> Floats:
        floor, amplitude, a, size, momentum = (parameters[name] for name in self.parameters)
        return np.array(
            [
                math.log(floor),
                math.log(amplitude) - a * math.log(scale.updates * scale.peak),
                a,
                math.log(size * scale.peak / (1 - momentum)),
                -math.log(-math.log(momentum)),
            ]
        )


LAWS: Sequence[CurveLaw] = (MultiPowerLaw(), AnnealingLaw())


def find_law(name: str) -> CurveLaw:
    """The law with this name. Raises FitError."""
    for law in LAWS:
        if law.name == name:
            return law
    raise FitError(f"no curve law is named {name!r}; valid names: {', '.join(law.name for law in LAWS)}")
