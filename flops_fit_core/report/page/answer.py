"""The answer at the top of the page, in words and numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flops_fit_core import numbers
from flops_fit_core.records import Interval, LawFit, Optimum


@dataclass(frozen=True)
class Tile:
    """A number of the answer."""

    name: str
    """Key of the number for the page's script."""
    label: str
    value: str
    interval: str
    """Empty without an interval."""


def tiles(fit: LawFit, answer: Optimum) -> list[Tile]:
    """The numbers of the answer, with their intervals."""
    return [
        _tile("params", "Parameters N", answer.params, numbers.count),
        _tile("tokens", f"{fit.unit.capitalize()} D", answer.tokens, numbers.count),
        Tile(
            "ratio",
            f"{fit.unit.capitalize()} per parameter",
            numbers.ratio(answer.tokens.value / answer.params.value),
            "",
        ),
        _tile("loss", "Held-out loss", answer.loss, numbers.loss),
    ]


def _tile(name: str, label: str, interval: Interval, show: Callable[[float], str]) -> Tile:
    span = "" if interval.low is None else numbers.span(interval.low, interval.high, show)
    return Tile(name, label, show(interval.value), span)
