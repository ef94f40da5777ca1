"""The figures of two sides as files: profiles, N_opt and D_opt, the loss frontier, and the gain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flops_fit_core import numbers
from flops_fit_core.records import Interval, Optimum
from flops_fit_core.report.axes import add_margin, plain_text, set_log_axis, style_axes
from flops_fit_core.report.comparison import gain_figure
from flops_fit_core.report.figures.against_flops import BAND, curve_of
from flops_fit_core.report.figures.canvas import Canvas, new_canvas, without_latex
from flops_fit_core.report.overlay.content import OverlayContent
from flops_fit_core.report.overlay.conventions import Quantity
from flops_fit_core.report.overlay.side import Side
from flops_fit_core.report.profiles import build_profiles
from flops_fit_core.report.theme import Theme

MARKERS = {"A": "o", "B": "D"}
_MOST_CHARACTERS = 40


@without_latex()
def draw_overlays(content: OverlayContent) -> dict[str, Figure]:
    """The figures by name. Quantities that are not compared, and figures without data, are left out."""
    figures = {}
    if _may_draw(content, "params", "loss") and all(side.observations for _, side in content.sides):
        figures["isoflop"] = _draw_profiles(content)
    if any(content.curves):
        panels: list[tuple[Quantity, str]] = [("params", "N"), ("tokens", "D")]
        drawn = [panel for panel in panels if _may_draw(content, panel[0])]
        if drawn:
            figures["optimum"] = _draw_optima(content, drawn)
        if _may_draw(content, "loss"):
            figures["frontier"] = _draw_frontier(content)
    if content.gain.comparison is not None:
        figures["gain"] = gain_figure(content.gain.comparison)
    return figures


def _may_draw(content: OverlayContent, *quantities: Quantity) -> bool:
    return not any(quantity in content.refused for quantity in quantities)


def _color(theme: Theme, letter: str) -> Any:
    return theme.law if letter == "A" else theme.second


def _draw_optima(content: OverlayContent, panels: Sequence[tuple[Quantity, str]]) -> Figure:
    """N_opt and D_opt against C, log-log, dashed beyond the runs of each side."""
    canvas = new_canvas(None, None, None, kind="optimum", columns=len(panels), aspect=0.46)
    for axes, (name, letter) in zip(canvas.panels, panels, strict=True):
        _draw_laws(canvas, axes, content, attrgetter(name))
        box = axes.dataLim
        set_log_axis(axes, "y", *add_margin([box.y0, box.y1], 0.08), "count")
        label = rf"${letter}_{{\mathrm{{opt}}}}$"
        style_axes(axes, canvas.theme, "C, training FLOPs", label, wrap=canvas.characters())
    canvas.add_legend(_legend(canvas.theme, content))
    return canvas.figure


def _draw_frontier(content: OverlayContent) -> Figure:
    """L_opt against C, with the runs of both sides."""
    canvas = new_canvas(None, None, None, kind="frontier", aspect=0.58)
    axes = canvas.panels[0]
    for letter, side in content.sides:
        _draw_runs(axes, canvas.theme, letter, side, attrgetter("flops"))
    _draw_laws(canvas, axes, content, attrgetter("loss"))
    box = axes.dataLim
    set_log_axis(axes, "y", *add_margin([box.y0, box.y1], 0.08), "ratio")
    style_axes(axes, canvas.theme, "C, training FLOPs", "held-out loss at the optimum", wrap=canvas.characters())
    canvas.add_legend(_legend(canvas.theme, content, with_runs=True))
    return canvas.figure


def _draw_laws(
    canvas: Canvas, axes: Axes, content: OverlayContent, quantity: Callable[[Optimum], Interval]
) -> None:
    for (letter, side), optima in zip(content.sides, content.curves, strict=True):
        if not optima or side.fit is None:
            continue
        color, curve = _color(canvas.theme, letter), curve_of(optima, quantity)
        flops, value = np.array(curve.flops), np.array(curve.value)
        if curve.low is not None:
            axes.fill_between(flops, curve.low, curve.high, color=color, alpha=0.8 * BAND, lw=0)
        low, high = side.fit.flops_range
        is_fitted = (flops >= low * 0.999) & (flops <= high * 1.001)
        axes.plot(flops, value, "--", color=color, lw=canvas.theme.line)
        axes.plot(flops[is_fitted], value[is_fitted], "-", color=color, lw=1.4 * canvas.theme.line)
    box = axes.dataLim
    set_log_axis(axes, "x", *add_margin([box.x0, box.x1]), "power", most=5)


def _draw_profiles(content: OverlayContent) -> Figure:
    """Loss against N: the runs, and a profile per budget of each side."""
    canvas = new_canvas(None, None, None, kind="isoflop", aspect=0.62)
    theme, axes = canvas.theme, canvas.panels[0]
    ends: list[tuple[str, float, float, Any]] = []
    for letter, side in content.sides:
        color = _color(theme, letter)
        for profile in [] if side.fit is None else build_profiles(list(side.observations), side.fit):
            axes.plot(
                profile.params, profile.loss, "--" if profile.at_edge else "-", color=color, lw=0.8 * theme.line
            )
            if len(profile.params):
                end = (float(profile.params[-1]), float(profile.loss[-1]))
                ends.append((numbers.scientific(profile.budget), *end, color))
            if profile.lowest is not None:
                axes.plot(*profile.lowest, "*", color=color, ms=2 * theme.marker, mec=theme.ink, mew=0.6)
    for letter, side in content.sides:
        _draw_runs(axes, theme, letter, side, attrgetter("params"))
    params = [run.params for _, side in content.sides for run in side.observations]
    losses = [run.loss for _, side in content.sides for run in side.observations]
    set_log_axis(axes, "x", *add_margin([min(params), max(params)], 0.12), "count")
    set_log_axis(axes, "y", *add_margin([min(losses), max(losses)], 0.08), "ratio")
    style_axes(axes, theme, "N", "held-out loss", wrap=canvas.characters())
    canvas.add_legend(_legend(theme, content, with_runs=True))
    _label_budgets(axes, theme, ends)
    return canvas.figure


def _label_budgets(axes: Axes, theme: Theme, ends: Sequence[tuple[str, float, float, Any]]) -> None:
    """The budget at the right end of each curve, as (text, N, loss, colour). No label covers an earlier one."""
    size = theme.size("note")
    points_per_pixel = 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    placed: list[tuple[float, float]] = []
    for text, params, loss, color in ends:
        x, y = (value * points_per_pixel for value in axes.transData.transform((params, loss)))
        if all(abs(x - other_x) > 5 * size or abs(y - other_y) > 1.1 * size for other_x, other_y in placed):
            placed.append((x, y))
            style = {"va": "center", "fontsize": size, "color": color}
            axes.annotate(text, (params, loss), xytext=(7, 0), textcoords="offset points", **style)


def _draw_runs(axes: Axes, theme: Theme, letter: str, side: Side, x: Callable[[Any], float]) -> None:
    used = [run for run in side.observations if side.fit is None or run.id not in side.fit.excluded]
    axes.plot(list(map(x, used)), [run.loss for run in used], **_run_style(theme, letter))


def _run_style(theme: Theme, letter: str) -> dict[str, Any]:
    return {
        "linestyle": "none", "marker": MARKERS[letter], "markersize": 0.9 * theme.marker, "mfc": "none",
        "mec": _color(theme, letter), "mew": 0.8,
    }  # fmt: skip


def _legend(theme: Theme, content: OverlayContent, *, with_runs: bool = False) -> list[Any]:
    signs: list[Any] = []
    for letter, side in content.sides:
        name = plain_text(side.name)
        short = name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"
        style = _run_style(theme, letter) if with_runs else {}
        line = {"color": _color(theme, letter), "lw": 1.4 * theme.line, "label": f"{letter}: {short}"}
        signs.append(Line2D([], [], **{**style, "linestyle": "-", **line}))
    levels = {side.fit.level for _, side in content.sides if side.fit is not None}
    if not with_runs and len(levels) == 1:
        signs.append(Patch(color=theme.grey, alpha=BAND, lw=0, label=f"{levels.pop():.0%} interval"))
        signs.append(Line2D([], [], color=theme.grey, lw=theme.line, ls="--", label="beyond the runs"))
    return signs
