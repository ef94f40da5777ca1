"""Renders the page of two sides: one HTML text without external resources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from flops_fit_core import __version__, numbers
from flops_fit_core.records import Interval, Optimum
from flops_fit_core.report.comparison import describe_comparison, gains_table
from flops_fit_core.report.datatable import DataTable
from flops_fit_core.report.overlay import sentences
from flops_fit_core.report.overlay.answers import AnswerPair, quantity_tables, show_loss_difference
from flops_fit_core.report.overlay.content import OverlayContent
from flops_fit_core.report.overlay.conventions import QUANTITIES, Quantity
from flops_fit_core.report.overlay.figure_data import page_data
from flops_fit_core.report.overlay.side import Side
from flops_fit_core.report.page import assets
from flops_fit_core.report.page.rendering import page_environment
from flops_fit_core.report.provenance import ProvenanceItem, provenance

FOLDER = Path(__file__).parent
_SHARED = ("data.js", "format.js", "palette.js", "download.js", "charts.js", "gallery.js")
_OWN = ("sides.js", "overlay-optima.js", "overlay-profiles.js", "overlay-main.js")
FILES = assets.PageFiles(
    styles=(*assets.REPORT.styles[:-1], FOLDER / "css" / "overlay.css", assets.REPORT.styles[-1]),
    modules=(
        *(assets.FOLDER / "js" / name for name in _SHARED),
        *(FOLDER / "js" / name for name in _OWN),
    ),
)
_LABELS: dict[Quantity, str] = {"params": "Parameters N_opt", "tokens": "{unit} D_opt", "loss": "Held-out loss"}


@dataclass(frozen=True)
class ValueCell:
    """A number of the answers with its interval, as text."""

    value: str
    interval: str = ""
    label: str = ""
    refusal: str = ""
    """Why the quantity is not compared."""


@dataclass(frozen=True)
class SideAlone:
    """A side at the end of the page."""

    letter: str
    side: Side
    warnings: list[str]
    facts: list[ProvenanceItem]


def render_overlay(content: OverlayContent) -> str:
    """The page as HTML text. Equal content gives equal text."""
    comparison = content.gain.comparison
    pair = content.pairs[-1] if content.pairs else None
    template = _environment().get_template("overlay.html.jinja")
    return template.render(
        content=content,
        metas=[_describe_side(letter, side) for letter, side in content.sides],
        verdict=sentences.verdict(content),
        synthetic=" and ".join(letter for letter, side in content.sides if side.synthetic),
        quantity_names=sentences.QUANTITY_NAMES,
        assumed=sentences.assumed(content),
        methods=list(_methods(content)),
        pair=pair,
        optima=[] if pair is None else [("A", content.first, pair.first), ("B", content.second, pair.second)],
        versus=[] if pair is None else _versus(content, pair),
        differences="" if pair is None else sentences.differences(content, pair),
        outside="" if pair is None else sentences.outside(pair),
        interval_note=sentences.interval_note(content) if content.pairs else "",
        tables=_tables(content),
        comparison=comparison,
        gains=None if comparison is None else gains_table(comparison),
        gain_sentence="" if comparison is None else sentences.gain(content, comparison),
        gain_lines=[] if comparison is None else describe_comparison(comparison, with_gate=False)[2:],
        figures=sentences.figures(content),
        not_drawn=sentences.not_drawn(content),
        alone=[_alone(letter, side) for letter, side in content.sides],
        data=page_data(content),
        version=__version__,
    )


@cache
def _environment() -> Environment:
    return page_environment(FOLDER / "templates", files=FILES)


def _describe_side(letter: str, side: Side) -> str:
    if side.fit is None:
        return f"{letter}: {len(side.observations)} runs, no law yet"
    return f"{letter}: {side.fit.n_runs} runs of {numbers.span(*side.fit.flops_range, numbers.scientific)} FLOPs"


def _methods(content: OverlayContent) -> Iterator[tuple[str, str, str]]:
    """How the laws were fitted: name, A, B."""
    first, second = content.first.fit, content.second.fit
    if first is None or second is None:
        return
    yield "Fitter", first.fitter.name, second.fitter.name
    yield "Law", first.law.name, second.law.name
    yield "Intervals", f"{first.level:.0%}", f"{second.level:.0%}"


def _versus(content: OverlayContent, pair: AnswerPair) -> list[dict[str, Any]]:
    """The rows of the answers at a budget: label, A, B, difference."""
    unit = _common_unit(content)
    rows: list[dict[str, Any]] = []
    for name, label in _LABELS.items():
        show = numbers.loss if name == "loss" else numbers.count
        row: dict[str, Any] = {"label": label.format(unit=unit.capitalize())}
        row |= {letter: _cell(getattr(optimum, name), show) for letter, optimum in _optima(pair)}
        rows.append(row | {"difference": _difference(content, pair, name)})
    ratios = {letter: _ratio(optimum) for letter, optimum in _optima(pair)}
    cells = {letter: ValueCell(numbers.ratio(value)) for letter, value in ratios.items()}
    refusal = content.refused.get("params") or content.refused.get("tokens") or ""
    value = numbers.ratio(ratios["B"] / ratios["A"])
    difference = ValueCell("", refusal=refusal) if refusal else ValueCell(value, label="B / A")
    rows.insert(2, {"label": f"{unit.capitalize()} per parameter", **cells, "difference": difference})
    return rows


def _optima(pair: AnswerPair) -> tuple[tuple[str, Optimum], tuple[str, Optimum]]:
    return ("A", pair.first), ("B", pair.second)


def _ratio(optimum: Optimum) -> float:
    return optimum.tokens.value / optimum.params.value


def _cell(interval: Interval, show: Any, label: str = "") -> ValueCell:
    span = "" if interval.low is None else numbers.span(interval.low, interval.high, show)
    return ValueCell(show(interval.value), span, label)


def _difference(content: OverlayContent, pair: AnswerPair, name: Quantity) -> ValueCell:
    if name in content.refused:
        return ValueCell("", refusal=content.refused[name])
    if name == "loss":
        return _cell(pair.differences[name], show_loss_difference, "B − A")
    return _cell(pair.differences[name], numbers.ratio, "B / A")


def _common_unit(content: OverlayContent) -> str:
    first, second = content.first.unit, content.second.unit
    return first if first == second else f"{first} or {second}"


def _tables(content: OverlayContent) -> list[tuple[DataTable, str]]:
    """A table per quantity, and why it has no difference; empty if it has one."""
    if not content.pairs or content.first.fit is None or content.second.fit is None:
        return []
    levels = f"{content.first.fit.level:.0%}", f"{content.second.fit.level:.0%}"
    reasons = [content.refused.get(name, "") for name in QUANTITIES]
    return list(zip(quantity_tables(content.pairs, levels), reasons, strict=True))


def _alone(letter: str, side: Side) -> SideAlone:
    diagnostics = side.fit.diagnostics if side.fit is not None else tuple(side.diagnostics)
    warnings = [item.message for item in diagnostics if item.severity == "warning"]
    return SideAlone(letter, side, warnings, provenance(side.fit, side.results, side.plan))
