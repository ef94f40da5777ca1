"""The result of a comparison."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flops_fit_core.records import Diagnostic, Interval
from flops_fit_core.records.base import Positive, Record


class GainAt(Record):
    """The gain at a budget."""

    flops: Positive
    """C of the second recipe; the first needs ``gain`` times as much for the same loss."""
    gain: Interval
    """Posterior median, with an interval at the comparison's level unless the runs do not determine it."""
    lower: float | None
    """Lower one-sided 95% bound of the gain, the number that the gate tests; None without an interval."""
    probability: float
    """Probability that the second recipe needs less compute: that the gain is above 1."""
    smallest_detectable: float | None
    """Gain that the gate would promote in 90% of studies with this design and noise; None without an interval."""


class Comparison(Record):
    """The compute-equivalent gain of a second recipe over a first."""

    first: str
    second: str
    level: Annotated[float, Field(gt=0, lt=1)]
    """Level of the intervals, 0.9 for 90%."""
    gate: Positive
    """Gain that :attr:`promoted` requires."""
    gains: tuple[GainAt, ...]
    """One per budget."""
    change: Interval
    """The exponent delta of g(C) ~ C^delta. 0 means that both recipes have the same exponents."""
    shared_exponents: float
    """Probability of shared exponents (delta = 0), with even odds before the runs and delta ~ N(0, 0.2^2)
    otherwise. The intervals do not assume shared exponents."""
    noise: float
    """Standard deviation of ln L between equal runs, at the geometric mean of C."""
    pair_correlation: float | None
    """Correlation of the noise of two runs with equal N, D and seed, one per recipe; None without pairs."""
    n_runs: tuple[int, int]
    n_pairs: int
    """Pairs of runs, one per recipe, with equal N, D and seed."""
    n_shared_cells: int
    """(N, D) cells with runs of both recipes."""
    flops_range: tuple[Positive, Positive]
    """Smallest and largest C that both recipes cover."""
    excluded: dict[str, str] = {}
    """Run id -> the reason why the comparison does not use it."""
    curve: tuple[tuple[Positive, Positive, Positive, Positive], ...] = ()
    """(C, gain, low, high) along the common range of C, for a figure."""
    differences: tuple[str, ...] = ()
    """How the recipes of two studies differ, first -> second; empty for tables."""
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether every gain has an interval."""
        return all(item.lower is not None for item in self.gains)

    @property
    def promoted(self) -> bool:
        """Whether the lower one-sided 95% bound of the gain is above the gate at every budget."""
        return all(item.lower is not None and item.lower > self.gate for item in self.gains)
