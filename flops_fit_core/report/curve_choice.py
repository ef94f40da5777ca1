"""The choice of training curves that a figure draws: all of a small study, a few per budget of a large one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

MOST_CURVES = 40
"""More curves than this hide each other."""


@dataclass(frozen=True)
class CurveChoice:
    """Places of curves in the list from which they were chosen, ascending."""

    shown: list[int]
    """Curves to draw."""
    best: list[int]
    """Of each budget, the curve with the lowest last loss, if it is drawn; these are drawn in front."""


def choose_curves(ends: Sequence[tuple[float | None, float]], most: int = MOST_CURVES) -> CurveChoice:
    """Choose curves by their budget (None without one) and last loss.

    At most ``most`` curves are all shown. Of more, each budget shows its best curve and others at equal distances
    in the order of their losses, up to the worst. With more budgets than ``most``, the best curves of budgets at
    equal distances are shown, the smallest and the largest among them.
    """
    groups: dict[float | None, list[int]] = {}
    for place in sorted(range(len(ends)), key=lambda place: ends[place][1]):
        groups.setdefault(ends[place][0], []).append(place)
    if len(ends) <= most:
        return CurveChoice(list(range(len(ends))), sorted(group[0] for group in groups.values()))
    budgets = sorted(groups, key=lambda budget: (budget is not None, budget or 0.0))
    chosen = [groups[budget] for budget in _spread(budgets, most)]
    per_budget = max(1, most // len(chosen))
    shown = [place for group in chosen for place in _spread(group, per_budget)]
    return CurveChoice(sorted(shown), sorted(group[0] for group in chosen))


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` items at equal distances, with the first and, of two or more, the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
