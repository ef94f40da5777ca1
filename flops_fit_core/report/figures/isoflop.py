"""IsoFLOP profiles: loss against N per budget, with the residuals of the runs below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flops_fit_core.errors import FitError
from flops_fit_core.records import Observation
from flops_fit_core.report.axes import (
    add_margin,
    format_power,
    mark_synthetic,
    set_log_axis,
    set_title,
    style_axes,
)
from flops_fit_core.report.figures.canvas import Canvas, new_canvas
from flops_fit_core.report.figures.data import FigureData
from flops_fit_core.report.figures.labels import CurveLabel, label_curves
from flops_fit_core.report.profiles import DrawnProfile, build_profiles, group_by_profile, profile_residuals
from flops_fit_core.report.theme import MAX_NAMED_BUDGETS, Theme


def draw_isoflop(data: FigureData, ax: Any = None, style: str | None = None, width: str | None = None) -> Figure:
    """Loss against N per budget: runs, their profile, and a hollow star at its minimum; residuals below.

    Points are measured losses; profiles hold at the nominal budget. For a fitted surface L(N, D), profiles are its
    slices. A ring is the lowest size of a profile without a minimum inside its sizes, which the law does not use;
    that profile is dashed. Without a law, neighbouring runs are joined, and the panel of residuals is left out.
    """
    profiles = [] if data.law is None else build_profiles(data.observations, data.law)
    if data.law is None:
        return _draw_runs(data, ax, style, width)
    if not data.observations and not profiles:
        raise FitError("kind 'isoflop' needs runs: give them, such as observations=runs, or draw kind 'optimum'")
    residuals = profile_residuals(data.observations, data.law, profiles)
    has_panel = bool(residuals) and (ax is None or not isinstance(ax, Axes))
    rows = (3, 1) if has_panel else (1,)
    canvas = new_canvas(ax, style, width, kind="isoflop", rows=rows, optional_panels=len(rows) - 1, aspect=0.7)
    theme, axes = canvas.theme, canvas.panels[0]
    colors = theme.budget_colors([profile.budget for profile in profiles])
    groups = group_by_profile(data.observations, profiles)
    unassigned = groups.pop(None, [])
    scale = 0.7 if len(profiles) > MAX_NAMED_BUDGETS else 1.0
    dots = 0.45 if len(data.observations) > 300 else scale
    axes.plot(*_positions(unassigned), **theme.dot(theme.grey, 0.8 * dots))
    for profile, color in zip(profiles, colors, strict=True):
        _draw_profile(axes, profile, groups.get(profile.budget, []), color, theme, (dots, scale))
    sizes = [run.params for run in data.observations] + [profile.lowest[0] for profile in profiles]
    low, high = add_margin(sizes or [1.0])
    set_log_axis(axes, "x", low, high, "count", most=5 if canvas.is_narrow else 8)
    if len(canvas.panels) > 1:
        _draw_residuals(canvas, residuals, dict(zip([p.budget for p in profiles], colors, strict=True)), dots)
    _label_axes(canvas, data)
    _mark(canvas, data)
    _add_signs(canvas, profiles, is_surface=not data.law.minima, has_unassigned=bool(unassigned))
    name_budgets(canvas, axes, [profile.budget for profile in profiles], colors, _places(profiles, groups))
    return canvas.figure


def _positions(runs: Sequence[Observation]) -> tuple[list[float], list[float]]:
    return [run.params for run in runs], [run.loss for run in runs]


def _draw_profile(
    axes: Axes,
    profile: DrawnProfile,
    runs: Sequence[Observation],
    color: Any,
    theme: Theme,
    scales: tuple[float, float],
) -> None:
    """Draw the runs at the first of ``scales``, and the minimum at the second."""
    dots, scale = scales
    axes.plot(*_positions(runs), **theme.dot(color, dots), zorder=5)
    axes.plot(
        profile.params, profile.loss, "--" if profile.at_edge else "-", color=color, lw=theme.line, zorder=1.5
    )
    # A ring surrounds its run, so draw it above. Stars must not hide runs, unless dense runs would hide stars.
    zorder = 6 if profile.at_edge or dots < scale else 4
    axes.plot(*profile.lowest, **minimum_style(theme, color, profile.at_edge, scale), zorder=zorder)


def minimum_style(theme: Theme, color: Any, at_edge: bool, scale: float = 1.0) -> dict[str, Any]:
    """The marker of an IsoFLOP minimum, or of the lowest size at an edge of the grid."""
    if at_edge:
        return {**theme.hollow(color, "o", 2.0 * scale), "mfc": "none"}
    return theme.hollow(color, "*", 2.4 * scale)


def _draw_residuals(canvas: Canvas, residuals: Any, colors: dict[float, Any], scale: float) -> None:
    theme, axes = canvas.theme, canvas.panels[1]
    axes.axhline(0, color=theme.ink, lw=0.7, zorder=1)
    for item in residuals:
        used, color = np.array(item.used, dtype=bool), colors[item.budget]
        axes.plot(item.params[used], item.percent[used], **theme.dot(color, scale), zorder=3)
        axes.plot(item.params[~used], item.percent[~used], **theme.hollow(color, "o", scale), zorder=3)
    axes.margins(y=0.15)


def _label_axes(canvas: Canvas, data: FigureData) -> None:
    theme, names, (main, *rest) = canvas.theme, data.names, canvas.panels
    wrap, y_wrap = canvas.characters(), canvas.characters("height")
    x_label = "" if rest and canvas.is_new else f"N, {names.params}"
    style_axes(main, theme, x_label, f"L, {names.loss}", wrap=wrap, y_wrap=y_wrap)
    set_title(main, theme, f"C: training FLOPs, {names.flops}", wrap=int(wrap * 1.1))
    for axes in rest:
        set_log_axis(axes, "x", *main.get_xlim(), "count", most=5 if canvas.is_narrow else 8)
        style_axes(axes, theme, f"N, {names.params}", "residual\nof L (%)", wrap=wrap)
    if canvas.is_new:
        canvas.figure.align_ylabels()


def _mark(canvas: Canvas, data: FigureData) -> None:
    for axes in canvas.panels if data.synthetic else ():
        mark_synthetic(axes, canvas.theme)


def _places(
    profiles: Sequence[DrawnProfile], groups: dict[float | None, list[Observation]]
) -> list[list[tuple[float, float, str]]]:
    """Places for the name of each profile: its ends, then its minimum."""
    places: list[list[tuple[float, float, str]]] = []
    for profile in profiles:
        x, y = _positions(groups.get(profile.budget, []))
        x, y = [*profile.params, *x, profile.lowest[0]], [*profile.loss, *y, profile.lowest[1]]
        last, first = int(np.argmax(x)), int(np.argmin(x))
        ends = [(last, "right"), (last, "above right"), (last, "above"), (last, "below right")]
        ends += [(first, "left"), (first, "above left"), (first, "above"), (first, "below left")]
        places.append([(x[row], y[row], side) for row, side in ends])
        places[-1] += [(*profile.lowest, side) for side in ("below", "below right", "below left")]
    return places


def _add_signs(
    canvas: Canvas, profiles: Sequence[DrawnProfile], *, is_surface: bool, has_unassigned: bool
) -> None:
    theme = canvas.theme
    signs = [Line2D([], [], **theme.dot(theme.grey), label="run")]
    if any(not profile.at_edge for profile in profiles):
        label = "lowest loss by the law" if is_surface else "IsoFLOP minimum"
        signs.append(Line2D([], [], **minimum_style(theme, theme.grey, False), label=label))
    if any(profile.at_edge for profile in profiles):
        ring = minimum_style(theme, theme.grey, True)
        signs.append(Line2D([], [], **ring, label="lowest at the edge, not used"))
    if has_unassigned and profiles:
        signs[0].set_label("run without a profile")
    elif len(signs) == 1:
        return
    else:
        signs = signs[1:]
    canvas.add_legend(signs)


def name_budgets(
    canvas: Canvas,
    axes: Axes,
    budgets: Sequence[float],
    colors: Sequence[Any],
    places: Sequence[Sequence[tuple[float, float, str]]],
) -> None:
    """Name the budgets at their curves, or in a legend if there is no room; a colour bar for many budgets."""
    theme = canvas.theme
    if not budgets:
        return
    if len(budgets) > MAX_NAMED_BUDGETS:
        add_color_bar(canvas, budgets)
        return
    texts = [f"C = {format_power(budgets[0])}", *map(format_power, budgets[1:])]
    labels = [CurveLabel(text, place) for text, place in zip(texts, places, strict=True)]
    low, high = axes.get_xlim()
    for extra in (0.0, 0.1, 0.2):
        axes.set_xlim(low / (high / low) ** (extra / 2), high * (high / low) ** extra)
        if label_curves(axes, labels, theme):
            return
    axes.set_xlim(low, high)
    # In the order of the curves from top to bottom: the smallest budget has the highest losses.
    lines = [
        Line2D([], [], marker="o", ms=theme.marker, lw=theme.line, color=color, label=format_power(budget))
        for budget, color in zip(budgets, colors, strict=True)
    ]
    if canvas.is_new and canvas.is_narrow:
        for line in lines:
            line.set_label(f"C = {line.get_label()}")
        canvas.add_legend(lines)
    else:
        canvas.add_side_legend(lines, "C (FLOPs)", "upper right")


def add_color_bar(canvas: Canvas, budgets: Sequence[float]) -> None:
    """A colour bar of C."""
    theme = canvas.theme
    mappable = ScalarMappable(LogNorm(budgets[0], budgets[-1]), theme.budgets)
    bar = canvas.figure.colorbar(mappable, ax=canvas.panels, pad=0.015, aspect=30)
    bar.set_label("C (FLOPs)", color=theme.ink, fontsize=theme.size("label"))
    bar.ax.tick_params(which="both", color=theme.ink, labelcolor=theme.ink, labelsize=theme.size("tick"))
    bar.outline.set_edgecolor(theme.ink)


def _draw_runs(data: FigureData, ax: Any, style: str | None, width: str | None) -> Figure:
    """Loss against N per budget, without a law."""
    canvas = new_canvas(ax, style, width, kind="isoflop")
    theme, axes = canvas.theme, canvas.panels[0]
    groups: dict[float | None, list[Observation]] = {}
    for run in sorted(data.observations, key=lambda run: run.params):
        groups.setdefault(run.budget, []).append(run)
    budgets = sorted(budget for budget in groups if budget is not None)
    colors = theme.budget_colors(budgets)
    axes.plot(*_positions(groups.get(None, [])), **theme.dot(theme.grey, 0.8))
    places: list[list[tuple[float, float, str]]] = []
    for budget, color in zip(budgets, colors, strict=True):
        x, y = _positions(groups[budget])
        axes.plot(x, y, "-", lw=0.6 * theme.line, color=color, zorder=1.5)
        axes.plot(x, y, **theme.dot(color), zorder=5)
        ends = [(x[-1], y[-1], side) for side in ("right", "above right", "above", "below right")]
        places.append(ends + [(x[0], y[0], side) for side in ("left", "above left", "above", "below left")])
    if data.observations:
        set_log_axis(axes, "x", *add_margin([run.params for run in data.observations]), "count")
    _label_axes(canvas, data)
    set_title(axes, theme, f"C: training FLOPs, {data.names.flops}. No law fitted.", wrap=canvas.characters())
    _mark(canvas, data)
    name_budgets(canvas, axes, budgets, colors, places)
    return canvas.figure
