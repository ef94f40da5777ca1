"""The verdict of a backtest: whether the fit missed the held-out runs by more than their scatter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops_fit_core import numbers

if TYPE_CHECKING:
    from flops_fit_core.fitting import Backtest


RESOLUTION = 1e-4
"""Errors below it are printed as 0.00% or 0.01%, so they count as no error."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a backtest."""

    holds: bool | None
    """Whether the error is within the scatter; None if neither scatter nor intervals are known."""
    error: float
    """Mean absolute relative error of the held-out losses."""
    scatter: float | None
    """Standard deviation of ln L between equal runs; None if the fit has no estimate."""
    step: float
    """The largest held-out C over the largest fitted C."""
    sentence: str


def judge(tested: Backtest) -> Verdict:
    """Compare the error with the scatter between runs; without an estimate of it, with the law's intervals.

    Under noise alone, the mean absolute error is 0.8 times the scatter.
    """
    error, step = tested.mean_abs_error, max(point.flops for point in tested.held_out) / tested.fit.flops_range[1]
    scatter = None if tested.fit.new_run is None else tested.fit.new_run.sigma
    budgets = len({f"{point.flops:.1e}" for point in tested.held_out})
    missed = f"Missed the held-out budget{'' if budgets == 1 else 's'} by {_percent(error)}"
    if scatter is not None:
        holds: bool | None = error <= max(scatter, RESOLUTION)
        missed += f", {'within' if holds else 'above'} the {_percent(scatter)} scatter"
    elif tested.with_interval:
        holds = tested.inside == tested.with_interval
        missed += f", {'inside' if holds else 'outside'} the law's {tested.fit.level:.0%} intervals"
    else:
        sentence = f"{missed}; the fit has no estimate of the scatter: compare with the noise of your runs."
        return Verdict(None, error, scatter, step, sentence)
    advice = f"the law held for a step of {numbers.ratio(step, 2)}x in C." if holds else "do not extrapolate far."
    return Verdict(holds, error, scatter, step, f"{missed}: {advice}")


def _percent(value: float) -> str:
    return f"{value:.2g} times" if value > 2 else f"{value:.1%}" if value >= 0.0095 else f"{value:.2%}"
