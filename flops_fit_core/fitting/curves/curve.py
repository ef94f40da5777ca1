"""The loss curve of a run, and its rows averaged in bins."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.curves.rates import JUMP, Integers, LearningRates
from flops_fit_core.fitting.data import Floats

BIN = 1 / 32
"""Length of a bin divided by its step, or by the distance from the last jump of the rate if that is less."""


@dataclass(frozen=True, eq=False)
class LossCurve:
    """The losses along one run, and the learning rate of every update, also of updates that are only planned.

    Args:
        name: Name of the run.
        steps: Shape (rows,), increasing: number of updates before each loss, at least 1.
        losses: Shape (rows,), nats, positive and finite.
        rates: The schedule up to the planned end of the run.

    Raises FitError for rows out of order, for losses that are not positive, and for losses after the schedule.
    """

    name: str
    steps: Integers = field(repr=False)
    losses: Floats = field(repr=False)
    rates: LearningRates = field(repr=False)
    group: str = ""
    """Curves of one group share a law: they have the same model size, data and batch size."""

    def __post_init__(self) -> None:
        steps = np.asarray(self.steps, dtype=np.int64)
        losses = np.asarray(self.losses, dtype=np.float64)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "losses", losses)
        if steps.ndim != 1 or steps.shape != losses.shape or not len(steps):
            raise FitError(f"curve {self.name}: steps and losses must be flat arrays of equal length, not empty")
        if steps[0] < 1 or np.any(np.diff(steps) <= 0):
            raise FitError(f"curve {self.name}: steps must increase, from 1 or later")
        if steps[-1] > self.rates.steps:
            raise FitError(
                f"curve {self.name}: a loss at step {steps[-1]}, but the schedule has {self.rates.steps} steps"
            )
        if not np.all(np.isfinite(losses)) or losses.min() <= 0:
            raise FitError(f"curve {self.name}: losses must be finite and positive")
        if not self.rates.sums[steps[0]] > 0:
            raise FitError(f"curve {self.name}: a loss at step {steps[0]}, before any update with a rate above 0")

    @property
    def last_step(self) -> int:
        return int(self.steps[-1])

    @property
    def is_finished(self) -> bool:
        """Whether the last loss is within 1% of the end of the schedule."""
        return self.last_step >= 0.99 * self.rates.steps

    def first(self, steps: int) -> LossCurve:
        """The rows up to a step, with the complete schedule. Raises FitError without rows."""
        seen = self.steps <= steps
        return replace(self, steps=self.steps[seen], losses=self.losses[seen])

    def after_warmup(self) -> LossCurve:
        """The rows after the rate first reached its peak (to 1%): the law does not hold before.

        Raises FitError without rows.
        """
        end = int(np.argmax(self.rates.values >= 0.99 * self.rates.peak))
        later = self.steps > end
        if not later.any():
            raise FitError(
                f"curve {self.name}: no loss after step {end}, where the learning rate reaches its peak; train on"
            )
        return replace(self, steps=self.steps[later], losses=self.losses[later])


@dataclass(frozen=True)
class BinnedCurve:
    """Rows of a curve averaged in bins of steps. The time of a fit then hardly grows with the number of rows."""

    curve: LossCurve
    steps: Integers
    """Shape (bins,): mean step of the rows in each bin, rounded."""
    log_losses: Floats
    """Shape (bins,): ln of the mean loss."""
    spans: Floats
    """Shape (bins,): length of each bin in ln(step), up to the middles between the bins."""

    @property
    def log_steps(self) -> Floats:
        return np.log(self.steps)

    @classmethod
    def of(cls, curve: LossCurve) -> BinnedCurve:
        starts = _bin_starts(curve.steps, _jump_steps(curve.rates))
        counts = np.diff(np.append(starts, len(curve.steps)))
        steps = np.rint(np.add.reduceat(curve.steps.astype(np.float64), starts) / counts).astype(np.int64)
        losses = np.add.reduceat(curve.losses, starts) / counts
        return cls(curve, steps, np.log(losses), _spans(steps))


def _jump_steps(rates: LearningRates) -> Integers:
    """Steps at which the rate changes by more than 5% of the peak in one update."""
    return np.flatnonzero(np.abs(np.diff(rates.values)) > JUMP * rates.peak) + 1


def _bin_starts(steps: Integers, jumps: Integers) -> Integers:
    """Index of the first row of each bin. No bin contains rows before and after a jump."""
    previous = np.searchsorted(jumps, steps, side="left")
    since_jump = np.where(previous > 0, steps - np.append(jumps, 0)[previous - 1], steps)
    widths = np.maximum(1, (BIN * since_jump).astype(np.int64))
    starts, row = [], 0
    while row < len(steps):
        starts.append(row)
        end = np.searchsorted(steps, steps[row] + widths[row])
        row = max(row + 1, min(int(end), int(np.searchsorted(previous, previous[row], side="right"))))
    return np.array(starts)


def _spans(steps: Integers) -> Floats:
    if len(steps) == 1:
        return np.array([BIN])
    middles = np.log(steps[1:] + steps[:-1]) - np.log(2.0)
    logs = np.log(steps)
    edges = np.concatenate([[2 * logs[0] - middles[0]], middles, [2 * logs[-1] - middles[-1]]])
    return np.diff(edges)


def decay_seen(curve: LossCurve) -> float:
    """The largest fall of the rate below its peak before the last loss, as a share of the peak."""
    seen = curve.rates.values[: curve.last_step]
    return float(np.max(np.maximum.accumulate(seen) - seen) / curve.rates.peak)


def decay_planned(curve: LossCurve) -> float:
    """The largest fall of the rate below its peak over the complete schedule, as a share of the peak."""
    values = curve.rates.values
    return float(np.max(np.maximum.accumulate(values) - values) / curve.rates.peak)
