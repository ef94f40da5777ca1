"""The content of the page of two sides, before it is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.errors import FlopsFitError
from flops_fit_core.fitting import Comparison
from flops_fit_core.records import Optimum
from flops_fit_core.report.overlay.answers import AnswerPair, choose_budgets, common_range, compare_answers
from flops_fit_core.report.overlay.conventions import Convention, Quantity, find_refused
from flops_fit_core.report.overlay.side import Side
from flops_fit_core.report.page.prediction_grid import find_solver, solve_many

CURVE_POINTS = 60
ABOVE = 10.0
"""The curves reach this factor beyond the largest C of both sides,"""
FARTHEST = 100.0
"""and at most this factor beyond the runs of the side."""


@dataclass(frozen=True)
class Gain:
    """The compute-equivalent gain of B over A, or the reason why it is not computed."""

    comparison: Comparison | None = None
    refusal: str = ""
    command: str = ""
    """The command that compares the two; empty if they have no files with runs."""


@dataclass(frozen=True)
class OverlayContent:
    """The content of a page. ``first`` is A, ``second`` is B."""

    first: Side
    second: Side
    conventions: Sequence[Convention]
    refused: Mapping[Quantity, str] = field(default_factory=dict)
    """Quantity -> why it is not compared. Empty if the reader allows differences."""
    allowed: Mapping[Quantity, str] = field(default_factory=dict)
    """Quantity -> why it should not be compared, and is compared because the reader allows it."""
    reach: tuple[float, float] | None = None
    """Smallest and largest C that both reach; None without two laws, or if they have no C in common."""
    pairs: Sequence[AnswerPair] = ()
    """The answers at budgets within ``reach``, ascending."""
    no_pairs: str = ""
    """Why there are no answers to show next to each other."""
    curves: tuple[Sequence[Optimum], Sequence[Optimum]] = ((), ())
    """The optima of each side along C, ascending; empty without a law."""
    gain: Gain = Gain()

    @property
    def sides(self) -> tuple[tuple[str, Side], tuple[str, Side]]:
        """Letter and side."""
        return ("A", self.first), ("B", self.second)

    @property
    def title(self) -> str:
        """The names of both sides."""
        return f"{self.first.name} and {self.second.name}"


def build_content(
    first: Side, second: Side, conventions: Sequence[Convention], gain: Gain, allow_differences: bool
) -> OverlayContent:
    """Compute the answers and curves of the page."""
    first, second = _cache_optima(first), _cache_optima(second)
    differing = find_refused(conventions)
    refused = {} if allow_differences else differing
    content = OverlayContent(
        first, second, conventions, refused, allowed=differing if allow_differences else {}, gain=gain
    )
    without_law = [
        f"{letter} has no law yet: {side.missing.partition(chr(10))[0]}"
        for letter, side in content.sides
        if side.fit is None
    ]
    content = replace(content, curves=_compute_curves(first, second))
    if without_law:
        return replace(content, no_pairs=". ".join(without_law))
    if not allow_differences and any(item.name == "C" and item.verdict == "different" for item in conventions):
        return replace(content, no_pairs="C is counted differently, so A and B have no budget in common")
    assert first.fit is not None
    assert second.fit is not None
    reach = common_range(first.fit, second.fit)
    if reach is None:
        ranges = [f"{letter} reaches C = {_show_range(side)}" for letter, side in content.sides]
        return replace(content, no_pairs=f"The budgets do not overlap: {' and '.join(ranges)}")
    try:
        pairs = compare_answers(first, second, choose_budgets(first, second, reach), refused)
    except FlopsFitError as error:  # a law without an optimum, or one that needs further inputs
        return replace(content, reach=reach, no_pairs=f"A law gives no optimum: {error}")
    return replace(content, reach=reach, pairs=pairs)


def _show_range(side: Side) -> str:
    assert side.fit is not None
    return numbers.span(*side.fit.flops_range, numbers.scientific)


def _cache_optima(side: Side) -> Side:
    return side if side.optimum is None else replace(side, optimum=lru_cache(maxsize=None)(side.optimum))


def _compute_curves(first: Side, second: Side) -> tuple[list[Optimum], list[Optimum]]:
    """The optima of each side along C, at common budgets where both curves are drawn."""
    ranges = [side.fit.flops_range for side in (first, second) if side.fit is not None]
    if not ranges:
        return [], []
    ends = [flops for low_high in ranges for flops in low_high]
    flops = [float(value) for value in np.geomspace(min(ends), ABOVE * max(ends), CURVE_POINTS)]
    # The ends of the fitted ranges are points of the curves, so that their solid parts reach them.
    budgets = sorted({*flops, *ends})
    return _compute_curve(first, budgets), _compute_curve(second, budgets)


def _compute_curve(side: Side, budgets: list[float]) -> list[Optimum]:
    if side.fit is None or side.optimum is None:
        return []
    low, high = side.fit.flops_range
    near = [flops for flops in budgets if low / FARTHEST <= flops <= high * FARTHEST]
    try:
        return solve_many(find_solver(side.fit, side.optimum), side.optimum, near)
    except FlopsFitError:
        return []
