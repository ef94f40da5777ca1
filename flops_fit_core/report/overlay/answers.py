"""The optima of two laws at the budgets that both reach, and their differences with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.fitting.uncertainty.contrast import difference, ratio
from flops_fit_core.records import Interval, LawFit, Optimum
from flops_fit_core.report.datatable import Column, DataTable, Row, column
from flops_fit_core.report.overlay.conventions import QUANTITIES, Quantity
from flops_fit_core.report.overlay.side import Side

MOST_BUDGETS = 5
"""Budgets of a table."""
SAME_FLOPS = 1.01
"""Ranges of C that are this factor apart, or less, touch: counted FLOPs meet a budget within 1%."""
NAMES: Mapping[Quantity, str] = {"params": "N_opt", "tokens": "D_opt", "loss": "loss"}


@dataclass(frozen=True)
class AnswerPair:
    """The optima of both laws at a budget."""

    flops: float
    first: Optimum
    second: Optimum
    differences: Mapping[Quantity, Interval]
    """B / A for N and D, B - A for the loss, with intervals. Quantities that cannot be compared are missing."""


def common_range(first: LawFit, second: LawFit) -> tuple[float, float] | None:
    """Smallest and largest C that the runs of both laws reach; None if they have no C in common."""
    low = max(first.flops_range[0], second.flops_range[0])
    high = min(first.flops_range[1], second.flops_range[1])
    return (min(low, high), high) if low <= high * SAME_FLOPS else None


def choose_budgets(first: Side, second: Side, reach: tuple[float, float]) -> list[float]:
    """Nominal budgets of both sides within their common range; without two, its ends and round numbers between."""
    low, high = reach[0] / SAME_FLOPS, reach[1] * SAME_FLOPS
    shared = _nominal_budgets(first) & _nominal_budgets(second)
    budgets = sorted(budget for budget in shared if low <= budget <= high)
    if len(budgets) > 1:
        places = np.unique(np.linspace(0, len(budgets) - 1, min(len(budgets), MOST_BUDGETS)).round().astype(int))
        return [budgets[place] for place in places]
    between = np.geomspace(*reach, MOST_BUDGETS)[1:-1] if reach[1] > 1.5 * reach[0] else ()
    rounded = {float(f"{flops:.1e}") for flops in between}
    return sorted({*(flops for flops in rounded if reach[0] < flops < reach[1]), *reach})


def _nominal_budgets(side: Side) -> set[float]:
    return {run.budget for run in side.observations if run.budget is not None}


def compare_answers(
    first: Side, second: Side, budgets: Sequence[float], refused: Mapping[Quantity, str]
) -> list[AnswerPair]:
    """The optima of both sides at each budget. Raises FitError for a law without an optimum."""
    assert first.optimum is not None
    assert second.optimum is not None
    pairs = []
    for flops in budgets:
        a, b = first.optimum(flops), second.optimum(flops)
        differences = {name: _compare(a, b, name) for name in QUANTITIES if name not in refused}
        pairs.append(AnswerPair(flops, a, b, _without_other_levels(differences, first, second)))
    return pairs


def _compare(first: Optimum, second: Optimum, name: Quantity) -> Interval:
    compare = difference if name == "loss" else ratio
    return compare(getattr(first, name), getattr(second, name))


def _without_other_levels(
    differences: Mapping[Quantity, Interval], first: Side, second: Side
) -> dict[Quantity, Interval]:
    """Intervals of two levels have no common interval."""
    assert first.fit is not None
    assert second.fit is not None
    if first.fit.level == second.fit.level:
        return dict(differences)
    return {name: Interval(value=item.value) for name, item in differences.items()}


_FIELDS = (
    "flops",
    *(f"{name}_{side}{end}" for name in QUANTITIES for side in "ab" for end in ("", "_low", "_high")),
    *(
        f"{name}{end}"
        for name in ("params_ratio", "tokens_ratio", "loss_difference")
        for end in ("", "_low", "_high")
    ),
)


def answers_table(pairs: Sequence[AnswerPair], caption: str) -> DataTable:
    """Every number, a row per budget, for a CSV file."""
    columns = (column("C", "flops", numbers.scientific),)
    return DataTable("A and B", caption, _FIELDS, tuple(_answer_row(pair) for pair in pairs), columns)


def _answer_row(pair: AnswerPair) -> Row:
    row: dict[str, float | None] = {"flops": pair.flops}
    for name in QUANTITIES:
        for side, optimum in (("a", pair.first), ("b", pair.second)):
            row |= _ends(f"{name}_{side}", getattr(optimum, name))
        field = "loss_difference" if name == "loss" else f"{name}_ratio"
        row |= _ends(field, pair.differences.get(name))
    return row


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    values = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def quantity_tables(pairs: Sequence[AnswerPair], levels: tuple[str, str]) -> list[DataTable]:
    """A table per quantity for the page: C, A, B, and their difference if they can be compared.

    ``levels`` are the levels of the intervals of A and B, such as ``90%``.
    """
    titles = {"params": "N_opt", "tokens": "D_opt", "loss": "Loss at the optimum"}
    return [_quantity_table(pairs, name, titles[name], levels) for name in QUANTITIES]


def _quantity_table(pairs: Sequence[AnswerPair], name: Quantity, title: str, levels: tuple[str, str]) -> DataTable:
    show: Callable[[float], str] = numbers.loss if name == "loss" else numbers.count
    columns = [column("C", "flops", numbers.scientific)]
    for letter, level in zip("AB", levels, strict=True):
        field = f"{name}_{letter.lower()}"
        columns += [column(letter, field, show), Column(f"{letter}, {level}", _show_span(field, show))]
    if all(name in pair.differences for pair in pairs):
        field = "loss_difference" if name == "loss" else f"{name}_ratio"
        show_difference: Callable[[float], str] = show_loss_difference if name == "loss" else numbers.ratio
        columns += [
            column("B − A" if name == "loss" else "B / A", field, show_difference),
            Column(levels[0], _show_span(field, show_difference)),
        ]
    return DataTable(title, "", _FIELDS, tuple(_answer_row(pair) for pair in pairs), tuple(columns))


def show_loss_difference(value: float) -> str:
    """A difference of losses with its sign, in four decimals: ``+0.0123``, ``−0.0123``."""
    return f"{value:+.4f}".replace("-", "−")


def _show_span(field: str, show: Callable[[float], str]) -> Callable[[Row], str]:
    return lambda row: numbers.span(row[f"{field}_low"], row[f"{field}_high"], show)
