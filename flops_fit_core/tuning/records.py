"""Results of a learning-rate sweep."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from flops_fit_core.records import Interval, Record


class TuningRun(Record):
    """One run of the sweep."""

    id: str
    size: int | float | str
    params: PositiveInt
    tokens: PositiveInt
    value: float
    """Value of the tuned option."""
    lr: float
    """The run's peak learning rate."""
    seed: int
    status: str
    loss: float | None
    """Held-out loss, nats per token; None unless completed."""


class SizeOptimum(Record):
    """The best value for one size."""

    size: int | float | str
    params: PositiveInt
    tokens: PositiveInt
    value: Interval | None
    """None if fewer than three values have a loss."""
    edge: Literal["low", "high"] | None = None
    """The best value lies below or above those tried: the lowest loss is at the smallest or the largest value, or
    (``low``) nearly all values diverged."""


class Tuning(Record):
    """The result of a learning-rate sweep."""

    option: str
    """The tuned option, such as ``recipe.lr``."""
    before: float
    """Its value before tuning, or its equivalent if the option is unset."""
    values: tuple[float, ...]
    """Values tried, ascending, a factor of 2 apart."""
    runs: tuple[TuningRun, ...]
    sizes: tuple[SizeOptimum, ...]
    best: Interval | None
    """The geometric mean of the sizes' best values; None if a size has no best value or has it at an edge."""
    level: float
    """Level of all intervals."""
    notes: tuple[str, ...] = ()
    """Warnings for the user."""

    @property
    def edges(self) -> frozenset[str]:
        """The sides on which the minimum of at least one size lies outside the values tried."""
        return frozenset(size.edge for size in self.sizes if size.edge is not None)

    def loss(self, params: int, value: float) -> float | None:
        """Mean loss over the seeds of the size with N = ``params``; None if a seed has no loss."""
        seeds = [run.loss for run in self.runs if run.params == params and run.value == value]
        losses = [loss for loss in seeds if loss is not None]
        return sum(losses) / len(losses) if losses and len(losses) == len(seeds) else None
