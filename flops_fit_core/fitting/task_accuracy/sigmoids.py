"""Accuracy as a sigmoid between a floor and a ceiling: of a loss, and of C and N / D.

Both are laws, so they share the solver, and the treatment of bounds and priors, with the laws of the loss. Their
starting values and bounds depend on the runs, so they are built for a table and are no plugins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.plugins.protocols.laws import LossLaw, Parameter

CHANCE_SD = 0.03
"""Standard deviation of the floor around a stated chance level: models that guess prefer some answers."""
SPLIT_SD = 0.15
"""Standard deviation of the effect of ln(N / D), relative to the effect of ln C."""
_FLOOR_MARGIN = 0.05
"""The floor may exceed the lowest measured accuracy by this much, because accuracy is noisy."""


class LossSigmoid(LossLaw):
    """Step 2: accuracy from the loss."""

    formula = "accuracy = floor + (ceiling - floor) / (1 + exp(slope (loss - midpoint)))"
    source = "Bhagia et al. 2024, arXiv 2412.04403"
    inputs = ("loss",)
    response = "loss"

    def __init__(self, ceiling: float, parameters: tuple[Parameter, ...] = ()) -> None:
        self.ceiling = ceiling
        self.parameters = parameters

    @classmethod
    def of(cls, loss: Floats, accuracy: Floats, chance: float | None, ceiling: float) -> LossSigmoid:
        """The law with starting values and bounds for these runs."""
        mean, scale = float(loss.mean()), max(float(loss.std()), 1e-9 * float(loss.mean()))
        slope = Parameter(
            "slope",
            tuple(float(np.exp(power)) / scale for power in (-1, 0, 1)),
            low=float(np.exp(-5)) / scale,
            high=float(np.exp(4)) / scale,
        )
        midpoint = Parameter(
            "midpoint",
            (mean, mean - 2 * scale, mean - 4 * scale),
            scale="linear",
            low=mean - 20 * scale,
            high=mean + 20 * scale,
        )
        return cls(ceiling, (_floor(accuracy, chance), slope, midpoint))

    def loss(self, loss: Any, *, floor: Any, slope: Any, midpoint: Any) -> Any:
        return floor + (self.ceiling - floor) * sigmoid(slope * (midpoint - loss))

    def gradient(self, loss: Floats, *, floor: Floats, slope: Floats, midpoint: Floats) -> Mapping[str, Floats]:
        share = sigmoid(slope * (midpoint - loss))
        steepness = (self.ceiling - floor) * share * (1 - share)
        return {"floor": 1 - share, "slope": steepness * (midpoint - loss), "midpoint": steepness * slope}


class ComputeSigmoid(LossLaw):
    """Directly: accuracy from ln C and ln(N / D).

    The prior of ``split`` is centred at 0, because N and D hardly matter at equal C near the optimum.
    """

    formula = "accuracy = floor + (ceiling - floor) sigmoid(intercept + slope (ln C + split ln(N / D)))"
    inputs = ("ln_flops", "ln_ratio")
    response = "loss"

    def __init__(self, ceiling: float, parameters: tuple[Parameter, ...] = ()) -> None:
        self.ceiling = ceiling
        self.parameters = parameters

    @classmethod
    def of(cls, accuracy: Floats, chance: float | None, ceiling: float) -> ComputeSigmoid:
        """The law with starting values and bounds for runs with a mean ln C and mean ln(N / D) of 0."""
        slopes = tuple(float(np.exp(power)) for power in (-2, -1))
        return cls(
            ceiling,
            (
                _floor(accuracy, chance),
                Parameter("intercept", (-2.0, -1.0, 0.0, 1.0), scale="linear", low=-15, high=10),
                Parameter("slope", slopes, low=float(np.exp(-6)), high=float(np.exp(1.5))),
                Parameter("split", (0.0,), scale="linear", low=-1, high=1, prior=(0.0, SPLIT_SD)),
            ),
        )

    def loss(self, ln_flops: Any, ln_ratio: Any, *, floor: Any, intercept: Any, slope: Any, split: Any) -> Any:
        share = sigmoid(intercept + slope * (ln_flops + split * ln_ratio))
        return floor + (self.ceiling - floor) * share

    def gradient(
        self, ln_flops: Floats, ln_ratio: Floats, *, floor: Floats, intercept: Floats, slope: Floats, split: Floats
    ) -> Mapping[str, Floats]:
        compute = ln_flops + split * ln_ratio
        share = sigmoid(intercept + slope * compute)
        steepness = (self.ceiling - floor) * share * (1 - share)
        return {
            "floor": 1 - share,
            "intercept": steepness,
            "slope": steepness * compute,
            "split": steepness * slope * ln_ratio,
        }


def sigmoid(z: Floats) -> Floats:
    """1 / (1 + exp(-z)) without overflow."""
    share: Floats = 1 / (1 + np.exp(-np.clip(z, -700, 700)))
    return share


def _floor(accuracy: Floats, chance: float | None) -> Parameter:
    lowest = float(accuracy.min())
    return Parameter(
        "floor",
        (0.5 * lowest, 0.9 * lowest),
        scale="linear",
        low=0.0,
        high=min(lowest + _FLOOR_MARGIN, 0.99),
        prior=None if chance is None else (chance, CHANCE_SD),
    )
