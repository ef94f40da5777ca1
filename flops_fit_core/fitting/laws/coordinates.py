"""Coordinates in which the solver fits a law: logarithms, bounds, priors, and terms at the mean of the runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats
from flops_fit_core.plugins.protocols.laws import LossLaw

MAX_COORDINATE = 400.0
"""Bound of a logarithm without a bound: e^400 is near the largest float64."""
_STEP = 1e-30
"""Complex step: derivatives are exact to rounding for any step that does not underflow."""


@dataclass(frozen=True)
class Coordinates:
    """theta of a law: ln value or value of each parameter; a parameter ``over`` inputs is its complete term."""

    law: LossLaw
    means: Mapping[str, float]
    """Mean ln of each input."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.law.parameters)

    @cached_property
    def bounds(self) -> tuple[Floats, Floats]:
        """Lower and upper bounds of theta, shape (size,)."""
        low, high = [], []
        for parameter in self.law.parameters:
            ends = (parameter.low, parameter.high)
            if parameter.scale == "log":
                low.append(np.log(ends[0]) if ends[0] else -MAX_COORDINATE)
                high.append(np.log(ends[1]) if ends[1] else MAX_COORDINATE)
            else:
                low.append(-np.inf if ends[0] is None else ends[0])
                high.append(np.inf if ends[1] is None else ends[1])
        return np.array(low), np.array(high)

    @cached_property
    def prior(self) -> tuple[Floats, Floats]:
        """Mean and precision 1 / sd^2 of the prior of theta, shape (size,); precision 0 without a prior."""
        priors = [parameter.prior for parameter in self.law.parameters]
        mean = np.array([0.0 if prior is None else prior[0] for prior in priors])
        return mean, np.array([0.0 if prior is None else prior[1] ** -2 for prior in priors])

    def values(self, theta: Floats) -> dict[str, Floats]:
        """Parameters by name, each of shape (fits,), from theta of shape (fits, size)."""
        values: dict[str, Floats] = {}
        for index, parameter in enumerate(self.law.parameters):
            column = theta[:, index]
            values[parameter.name] = np.exp(column) if parameter.scale == "log" else column
        for parameter in self.law.parameters:
            for name, exponent in parameter.over.items():
                power = _power(values, exponent)
                values[parameter.name] = values[parameter.name] * np.exp(power * self.means[name])
        return values

    def theta(self, values: Mapping[str, Floats | float]) -> Floats:
        """Theta of shape (fits, size) from parameters by name, each of shape (fits,)."""
        columns = []
        for parameter in self.law.parameters:
            column = np.atleast_1d(np.asarray(values[parameter.name], dtype=float))
            if parameter.scale == "log":
                column = np.log(column)
            for name, exponent in parameter.over.items():
                column = column - np.atleast_1d(_power(values, exponent)) * self.means[name]
            columns.append(column)
        return np.stack(np.broadcast_arrays(*columns), axis=1)

    def starting_points(self, inputs: Mapping[str, Floats], mean_loss: float) -> Floats:
        """Rows theta to start from."""
        points = self.law.starting_points(inputs, mean_loss)
        if points is not None:
            return self.theta({name: np.array([point[name] for point in points]) for name in self.names})
        columns = []
        for parameter in self.law.parameters:
            start = np.array(parameter.start) * (mean_loss if parameter.of_loss else 1.0)
            columns.append(np.log(start) if parameter.scale == "log" else start)
        return np.array(list(itertools.product(*columns)))

    def loss(self, theta: Floats, inputs: Mapping[str, Any]) -> Floats:
        """The loss, shape (fits, n)."""
        return evaluate(self.law, self.values(theta), inputs)

    def loss_and_gradient(self, theta: Floats, inputs: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        """The loss (fits, n), and its derivatives by theta (fits, size, n)."""
        values = self.values(theta)
        columns = {name: value[:, None] for name, value in values.items()}
        arrays = [inputs[name] for name in self.law.inputs]
        by_value = self.law.gradient(*arrays, **columns)
        if by_value is None:
            return self._complex_steps(theta, inputs)
        loss = evaluate(self.law, values, inputs)
        gradient = np.empty((len(theta), len(self.names), loss.shape[1]))
        by_value = dict(by_value)
        for index, parameter in enumerate(self.law.parameters):
            slope = by_value[parameter.name]
            for other in self.law.parameters:
                mean = sum(
                    self.means[key] * (-1 if exponent.startswith("-") else 1)
                    for key, exponent in other.over.items()
                    if exponent.lstrip("-") == parameter.name
                )
                if mean:
                    slope = slope + mean * columns[other.name] * by_value[other.name]
            gradient[:, index] = slope * columns[parameter.name] if parameter.scale == "log" else slope
        return loss, gradient

    def _complex_steps(self, theta: Floats, inputs: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        loss = self.loss(theta, inputs)
        gradient = np.empty((len(theta), len(self.names), loss.shape[1]))
        for index in range(len(self.names)):
            moved = theta.astype(complex)
            moved[:, index] += 1j * _STEP
            gradient[:, index] = np.imag(self.loss(moved, inputs)) / _STEP
        return loss, gradient

    def is_free(self, theta: Floats) -> Bools:
        """Whether each parameter is off its bounds, same shape as theta."""
        low, high = self.bounds
        is_free: Bools = (theta > low) & (theta < high)
        return is_free


def evaluate(law: LossLaw, values: Mapping[str, Floats], inputs: Mapping[str, Floats]) -> Floats:
    """The loss of a law, shape (fits, n), from parameters (fits,) and inputs (n,) or (fits, n)."""
    columns = {name: value[:, None] for name, value in values.items()}
    loss: Floats = law.loss(*(inputs[name] for name in law.inputs), **columns)
    return loss


def _power(values: Mapping[str, Any], exponent: str) -> Any:
    """The value of an exponent in ``over``: a parameter's name, the name after a minus sign, or empty for 1."""
    if not exponent:
        return 1.0
    value = np.asarray(values[exponent.lstrip("-")])
    return -value if exponent.startswith("-") else value
