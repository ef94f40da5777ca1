"""Step 2 and the direct curve: accuracy as a sigmoid between a floor and a ceiling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import product
from typing import Self

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.task_accuracy.penalised import REFIT_STEPS, Minimum, ParameterLimits, minimise

CHANCE_SD = 0.03
"""Standard deviation of the floor around a stated chance level: models that guess prefer some answers."""
SPLIT_SD = 0.15
"""Standard deviation of the effect of ln(N / D), relative to the effect of ln C."""
_FLOOR_MARGIN = 0.05
"""The floor may exceed the lowest measured accuracy by this much, because accuracy is noisy."""
_ROUNDS = 4
_MIN_NOISE = 1e-4


@dataclass(frozen=True)
class AccuracyCurve(ABC):
    """A sigmoid of some inputs, fitted by weighted least squares. ``theta[0]`` is the floor."""

    theta: Floats
    """Shape (p,)."""
    center: Floats
    """Means of the inputs of the fitted runs, shape (k,)."""
    scale: float
    """Standard deviation of the first input."""
    ceiling: float
    limits: ParameterLimits
    weights: Floats
    """Of the fitted runs, shape (n,)."""
    noise: float = 0.01
    """Standard deviation of accuracy at weight 1."""

    @abstractmethod
    def evaluate(self, theta: Floats, inputs: Floats) -> tuple[Floats, Floats]:
        """Accuracy (fits, n) and its derivatives (fits, n, p) for ``theta`` (fits, p) and ``inputs`` (k, n)."""

    @abstractmethod
    def parameters(self, theta: Floats) -> dict[str, Floats]:
        """The parameters in the units of the inputs, by name."""

    def anchor(self, inputs: Floats, accuracy: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """The runs, and any point that the curve must pass near."""
        return inputs, accuracy, weights

    def __call__(self, inputs: Floats) -> Floats:
        """Accuracy (n,) at ``inputs`` (k, n)."""
        accuracy: Floats = self.evaluate(self.theta[None], inputs)[0][0]
        return accuracy

    def solve(
        self, starts: Floats, inputs: Floats, accuracy: Floats, steps: int = 200, means: Floats | None = None
    ) -> Minimum:
        """A fit from each row of ``starts`` (fits, p) to ``accuracy``, (fits, n) or (1, n)."""
        inputs, accuracy, weights = self.anchor(inputs, accuracy, self.weights)
        return minimise(
            lambda theta: self.evaluate(theta, inputs),
            starts,
            accuracy,
            self.limits,
            weights,
            self.noise,
            steps,
            means,
        )

    def refit(self, inputs: Floats, accuracy: Floats, random: np.random.Generator) -> Floats:
        """Theta (fits, p) of each row of ``accuracy`` (fits, n), from this curve, with drawn prior means."""
        starts = np.repeat(self.theta[None], len(accuracy), axis=0)
        means = self.limits.draw_means(len(accuracy), random)
        return self.solve(starts, inputs, accuracy, REFIT_STEPS, means).theta

    def fitted(self, starts: Floats, inputs: Floats, accuracy: Floats) -> Self:
        """The best fit from many starts. The priors need the noise, which is estimated in rounds."""
        curve = self
        for _ in range(_ROUNDS):
            solved = curve.solve(starts, inputs, accuracy[None])
            theta = solved.theta[np.argmin(solved.value)]
            residuals = accuracy - curve.evaluate(theta[None], inputs)[0][0]
            dof = max(len(accuracy) - len(theta), 1)
            noise = max(float(np.sqrt((curve.weights * residuals**2).sum() / dof)), _MIN_NOISE)
            curve = replace(curve, theta=theta, noise=noise)
            starts = np.concatenate([theta[None], starts[:6]])
        return curve


class LossCurve(AccuracyCurve):
    """accuracy = floor + (ceiling - floor) / (1 + exp(slope (loss - midpoint))).

    theta = (floor, ln(slope * scale), midpoint). One more point, the ceiling at a loss of 0, counts as a run: a
    model that assigns probability 1 to the correct answers makes no error.
    """

    @classmethod
    def fit(cls, loss: Floats, accuracy: Floats, chance: float | None, ceiling: float) -> Self:
        mean, scale = float(loss.mean()), max(float(loss.std()), 1e-9 * float(loss.mean()))
        limits = _limits(accuracy, chance, (-5.0, mean - 20 * scale), (4.0, mean + 20 * scale))
        weights = measure_weights(accuracy)
        curve = cls(np.zeros(3), np.array([mean]), scale, ceiling, limits, weights)
        starts = [
            (floor, slope, midpoint)
            for floor, slope, midpoint in product(
                _floors(accuracy), (-1.0, 0.0, 1.0), (mean, mean - 2 * scale, mean - 4 * scale)
            )
        ]
        return curve.fitted(np.array(starts), loss[None], accuracy)

    def anchor(self, inputs: Floats, accuracy: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        perfect = np.full((len(accuracy), 1), self.ceiling)
        return (
            np.concatenate([inputs, np.zeros((1, 1))], axis=1),
            np.concatenate([accuracy, perfect], axis=1),
            np.append(weights, 1.0),
        )

    def evaluate(self, theta: Floats, inputs: Floats) -> tuple[Floats, Floats]:
        floor, slope = theta[:, :1], np.exp(theta[:, 1:2]) / self.scale
        z = slope * (theta[:, 2:3] - inputs[0])
        share = _sigmoid(z)
        steepness = (self.ceiling - floor) * share * (1 - share)
        derivatives = np.stack([1 - share, steepness * z, steepness * slope + 0 * z], axis=2)
        return floor + (self.ceiling - floor) * share, derivatives

    def parameters(self, theta: Floats) -> dict[str, Floats]:
        return {"floor": theta[:, 0], "slope": np.exp(theta[:, 1]) / self.scale, "midpoint": theta[:, 2]}


class ComputeCurve(AccuracyCurve):
    """accuracy = floor + (ceiling - floor) sigmoid(intercept + slope (ln C + split ln(N / D))).

    theta = (floor, intercept at the mean of the inputs, ln slope, split). The prior of ``split`` is centred at 0,
    because N and D hardly matter at equal C near the optimum.
    """

    @classmethod
    def fit(cls, inputs: Floats, accuracy: Floats, chance: float | None, ceiling: float) -> Self:
        limits = _limits(accuracy, chance, (-15.0, -6.0, -1.0), (10.0, 1.5, 1.0), (0.0, 0.0, 0.0))
        limits.sd[3] = SPLIT_SD
        weights = measure_weights(accuracy)
        curve = cls(np.zeros(4), inputs.mean(axis=1), 1.0, ceiling, limits, weights)
        starts = [
            (floor, intercept, slope, 0.0)
            for floor, intercept, slope in product(_floors(accuracy), (-2.0, -1.0, 0.0, 1.0), (-2.0, -1.0))
        ]
        return curve.fitted(np.array(starts), inputs, accuracy)

    def evaluate(self, theta: Floats, inputs: Floats) -> tuple[Floats, Floats]:
        floor, slope = theta[:, :1], np.exp(theta[:, 2:3])
        ln_flops, ln_ratio = inputs - self.center[:, None]
        z = slope * (ln_flops + theta[:, 3:4] * ln_ratio)
        share = _sigmoid(theta[:, 1:2] + z)
        steepness = (self.ceiling - floor) * share * (1 - share)
        derivatives = np.stack([1 - share, steepness, steepness * z, steepness * slope * ln_ratio], axis=2)
        return floor + (self.ceiling - floor) * share, derivatives

    def parameters(self, theta: Floats) -> dict[str, Floats]:
        slope, split = np.exp(theta[:, 2]), theta[:, 3]
        intercept = theta[:, 1] - slope * (self.center[0] + split * self.center[1])
        return {"floor": theta[:, 0], "intercept": intercept, "slope": slope, "split": split}


def loss_to_accuracy(law: dict[str, Floats], loss: Floats, ceiling: float) -> Floats:
    """Accuracy of a :class:`LossCurve` by its parameters; arrays that broadcast."""
    share = _sigmoid(law["slope"] * (law["midpoint"] - loss))
    accuracy: Floats = law["floor"] + (ceiling - law["floor"]) * share
    return accuracy


def compute_to_accuracy(law: dict[str, Floats], ln_flops: Floats, ln_ratio: Floats, ceiling: float) -> Floats:
    """Accuracy of a :class:`ComputeCurve` by its parameters; arrays that broadcast."""
    share = _sigmoid(law["intercept"] + law["slope"] * (ln_flops + law["split"] * ln_ratio))
    accuracy: Floats = law["floor"] + (ceiling - law["floor"]) * share
    return accuracy


def measure_weights(accuracy: Floats) -> Floats:
    """Weights inversely proportional to the binomial variance, with mean 1 and p at least .05 from 0 and 1."""
    weights = 1 / binomial_variance(np.clip(accuracy, 0.05, 0.95))
    normalised: Floats = weights / weights.mean()
    return normalised


def binomial_variance(accuracy: Floats) -> Floats:
    """Variance of one answer, p (1 - p), with p at least .01 away from 0 and 1."""
    p = np.clip(accuracy, 0.01, 0.99)
    variance: Floats = p * (1 - p)
    return variance


def _limits(
    accuracy: Floats,
    chance: float | None,
    low: tuple[float, ...],
    high: tuple[float, ...],
    mean: tuple[float, ...] | None = None,
) -> ParameterLimits:
    size = 1 + len(low)
    lowest = float(accuracy.min())
    return ParameterLimits(
        low=np.array([0.0, *low]),
        high=np.array([min(lowest + _FLOOR_MARGIN, 0.99), *high]),
        mean=np.array([chance or 0.0, *(mean or (0.0,) * (size - 1))]),
        sd=np.array([CHANCE_SD if chance is not None else np.inf, *(np.inf,) * (size - 1)]),
    )


def _floors(accuracy: Floats) -> tuple[float, float]:
    lowest = float(accuracy.min())
    return 0.5 * lowest, 0.9 * lowest


def _sigmoid(z: Floats) -> Floats:
    share: Floats = 1 / (1 + np.exp(-np.clip(z, -700, 700)))
    return share
