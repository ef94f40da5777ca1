"""The learning rate of every update of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats

Integers = npt.NDArray[np.int64]

JUMP = 0.05
"""A change between two rows by more than this share of the peak may be a jump, not part of a decay."""
MAX_STEPS = 20_000_000
"""The longest schedule. Its arrays need about 1 GB."""


@dataclass(frozen=True, eq=False)
class LearningRates:
    """The learning rate of each update: ``values[i]`` is the rate of update i, counted from 0.

    A loss "at step t" is measured after t updates, so it depends on ``values[:t]``.
    """

    values: Floats = field(repr=False)
    """Shape (steps,), non-negative."""

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        if values.ndim != 1 or not len(values):
            raise FitError("a schedule needs the learning rate of at least one update, as a flat array")
        if len(values) > MAX_STEPS:
            raise FitError(f"a schedule of {len(values):,} steps is longer than {MAX_STEPS:,}: give steps in tens")
        if not np.all(np.isfinite(values)) or values.min() < 0 or values.max() <= 0:
            raise FitError("learning rates must be finite, not negative, and not all 0")
        object.__setattr__(self, "values", values)

    @property
    def steps(self) -> int:
        return len(self.values)

    @property
    def peak(self) -> float:
        return float(self.values.max())

    @cached_property
    def sums(self) -> Floats:
        """``sums[t]`` is the sum of the rates of the first t updates; shape (steps + 1,)."""
        return np.concatenate([[0.0], np.cumsum(self.values)])

    def first(self, steps: int) -> LearningRates:
        """The schedule of the first ``steps`` updates."""
        return LearningRates(self.values[:steps])

    @classmethod
    def of(cls, rate: Callable[[int], float], steps: int) -> LearningRates:
        """The schedule ``rate(step)`` for steps 0 to ``steps - 1``."""
        return cls(np.array([rate(step) for step in range(steps)], dtype=np.float64))

    @classmethod
    def from_rows(
        cls, steps: Integers, rates: Floats, *, total_steps: int | None = None, warmup_steps: int | None = None
    ) -> LearningRates:
        """The schedule through logged rows (step, rate), in order of the steps.

        Between rows, the rate is linear. A jump, which is a change of more than 5% of the peak between two
        constant stretches, happens at the row that shows the new rate. After the last row, the rate is constant.

        Args:
            steps: Shape (rows,), increasing. The rate of a row is the rate of the update with this number, from 0.
            rates: Shape (rows,).
            total_steps: Number of updates; by default the last row's step.
            warmup_steps: Before the first row, the rate rises linearly from 0 over this many updates, then equals
                the first row's rate. By default the rate before the first row is constant if the first row is
                within 1% of ``total_steps``; otherwise it rises linearly from 0 up to the first row.
        """
        last = int(steps[-1])
        end = max(1, last if total_steps is None else total_steps)
        numbers = np.arange(end, dtype=np.float64)
        values = np.interp(numbers, steps, rates)
        for row in _jumps(rates):
            values[steps[row] + 1 : steps[row + 1]] = rates[row]
        start = int(steps[0])
        if warmup_steps is None:
            warmup_steps = start if start > 0.01 * end else 0
        rising = min(start, end)
        if warmup_steps > 0:
            values[:rising] = rates[0] * np.minimum(numbers[:rising] / warmup_steps, 1.0)
        return cls(values)


def _jumps(rates: Floats) -> Integers:
    """Rows before a jump: a large change between two stretches that are constant for at least a row.

    The first change of a table is not a jump: it may be the end of a warmup.
    """
    changes = np.abs(np.diff(rates))
    before = np.concatenate([[np.inf], changes[:-1]])
    after = np.concatenate([changes[1:], [0.0]])
    is_jump = (changes > JUMP * rates.max()) & (before <= 0.1 * changes) & (after <= 0.1 * changes)
    return np.flatnonzero(is_jump)
