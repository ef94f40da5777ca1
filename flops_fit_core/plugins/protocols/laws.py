"""Laws of the loss: a formula with declared inputs and parameters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Parameter:
    """A parameter of a :class:`LossLaw`.

    Raises ValueError for bounds or starting values that do not fit its scale.
    """

    name: str
    """A Python identifier: the keyword argument of :meth:`LossLaw.loss`."""
    start: tuple[float, ...] = (1.0,)
    """Starting values. The solver tries all combinations of the parameters' values."""
    scale: Literal["log", "linear"] = "log"
    """``log``: a positive parameter, fitted as its logarithm."""
    low: float | None = None
    """Lower bound; None for 0 on the log scale, and for no bound on the linear scale."""
    high: float | None = None
    """Upper bound; None for no bound."""
    prior: tuple[float, float] | None = None
    """Mean and standard deviation of a Gaussian prior of the parameter, or of its logarithm on the log scale."""
    over: Mapping[str, str] = field(default_factory=dict)
    """For A in a term A / params^alpha: ``{"params": "alpha"}``; for c in c params^gamma: ``{"params":
    "-gamma"}``; for N_c in N_c / params: ``{"params": ""}``. The solver fits the complete term at the mean of the
    runs, and ``start`` and the bounds are values of this term. A alone depends on alpha so strongly that a solver
    needs many more steps."""
    of_loss: bool = False
    """Whether ``start`` is in units of the mean loss of the runs."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"parameter {self.name!r}: the name must be a Python identifier, such as alpha")
        values = [*self.start, *(bound for bound in (self.low, self.high) if bound is not None)]
        if not self.start or not all(math.isfinite(value) for value in values):
            raise ValueError(f"parameter {self.name}: give one or more starting values; all values must be finite")
        if self.scale == "log" and min(self.start) <= 0:
            raise ValueError(f"parameter {self.name}: starting values on the log scale must be positive")
        if self.over and self.scale != "log":
            raise ValueError(f"parameter {self.name}: over is for parameters on the log scale")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"parameter {self.name}: low = {self.low:g} must be below high = {self.high:g}")


class LossLaw(ABC):
    """Base class of laws, which give the loss of a run from its inputs.

    A subclass sets the class attributes and writes the formula. Everything else (solver, bootstrap, optimum,
    report) is shared. The formula must accept numpy arrays of complex numbers: the solver takes exact derivatives
    by complex steps (Squire and Trapp 1998). ``np.abs``, ``np.maximum`` of a parameter and ``np.logaddexp`` break
    them; the conformance kit detects this.
    """

    formula: ClassVar[str]
    """The formula for people: ``"L = E + A / N^alpha"``."""
    source: ClassVar[str] = ""
    """Publication of the law, with its arXiv number."""
    inputs: ClassVar[tuple[str, ...]] = ("params", "tokens")
    """Positional arguments of :meth:`loss`: ``params`` (N), ``tokens`` (D), ``unique_tokens``, or names of further
    columns, such as ``vocabulary_params``."""
    parameters: tuple[Parameter, ...]
    response: ClassVar[Literal["log-loss", "loss"]] = "log-loss"
    """Quantity with errors of equal size: ln L, or L for a loss that may be negative."""

    @abstractmethod
    def loss(self, *inputs: Any, **parameters: Any) -> Any:
        """The loss, nats per token.

        Args:
            inputs: An array of shape (n,) per entry of :attr:`inputs`, in the units of the runs.
            parameters: An array of shape (fits, 1) per parameter, by name.

        Returns an array of shape (fits, n). A value that is not a positive finite number rejects the parameters.
        """

    def gradient(self, *inputs: Any, **parameters: Any) -> Mapping[str, NDArray[Any]] | None:
        """Derivatives of the loss by parameter, each of shape (fits, n). None: the solver computes them."""
        return None

    def starting_points(self, inputs: Mapping[str, Any], mean_loss: float) -> list[dict[str, float]] | None:
        """Starting points as values of all parameters, for laws with start values that depend on each other.

        None: all combinations of the parameters' ``start``.
        """
        return None


def log_sum_exp(first: Any, second: Any) -> Any:
    """Ln (exp(first) + exp(second)) without overflow, also for complex numbers, which ``np.logaddexp`` rejects."""
    import numpy as np

    swap = np.real(first) < np.real(second)
    larger, smaller = np.where(swap, second, first), np.where(swap, first, second)
    return larger + np.log1p(np.exp(smaller - larger))
