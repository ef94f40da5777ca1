"""Curves of a law against C: the law with its interval, the range of the runs, IsoFLOP minima, predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flops_fit_core.records import Interval, Optimum, ProfileMinimum
from flops_fit_core.report.axes import add_margin, set_log_axis, style_axes
from flops_fit_core.report.figures.canvas import Canvas
from flops_fit_core.report.figures.data import FigureData
from flops_fit_core.report.figures.isoflop import minimum_style
from flops_fit_core.report.theme import Theme

BAND = 0.2
"""Opacity of an interval's band."""


@dataclass(frozen=True)
class Curve:
    """A quantity against C; ``low`` and ``high`` are None without an interval."""

    flops: Any
    value: Any
    low: Any = None
    high: Any = None


def curve_of(optima: Sequence[Optimum], quantity: Callable[[Optimum], Interval]) -> Curve:
    """A quantity of the optima against C."""
    intervals = [quantity(optimum) for optimum in optima]
    flops, value = [optimum.flops for optimum in optima], [interval.value for interval in intervals]
    if any(interval.low is None or interval.high is None for interval in intervals):
        return Curve(flops, value)
    low, high = [interval.low for interval in intervals], [interval.high for interval in intervals]
    return Curve(flops, value, low, high)


def draw_law(axes: Axes, theme: Theme, data: FigureData, curve: Curve, points: Curve) -> None:
    """The law with its band, solid within the fitted budgets and dashed beyond; predictions as diamonds."""
    flops, value = np.array(curve.flops), np.array(curve.value)
    if curve.low is not None:
        axes.fill_between(flops, curve.low, curve.high, color=theme.law, alpha=BAND, lw=0)
    low, high = data.fit.flops_range
    is_fitted = (flops >= low * 0.999) & (flops <= high * 1.001)
    axes.plot(flops, value, "--", color=theme.law, lw=theme.line)
    axes.plot(flops[is_fitted], value[is_fitted], "-", color=theme.law, lw=1.4 * theme.line)
    if len(points.flops) and points.low is not None:
        errors = [np.subtract(points.value, points.low), np.subtract(points.high, points.value)]
        axes.errorbar(points.flops, points.value, errors, fmt="none", ecolor=theme.ink, elinewidth=1, capsize=2.5)
    axes.plot(points.flops, points.value, **theme.hollow(theme.ink, "D", 1.0), zorder=3)


def draw_minima(axes: Axes, theme: Theme, data: FigureData, quantity: Callable[[ProfileMinimum], float]) -> None:
    """The IsoFLOP minima as hollow stars, in the colours of their budgets."""
    colors = theme.budget_colors([minimum.budget for minimum in data.minima])
    scale = 0.7 if len(data.minima) > 12 else 1.0
    for minimum, color in zip(data.minima, colors, strict=True):
        axes.plot(
            minimum.budget, quantity(minimum), **minimum_style(theme, color, minimum.at_edge, scale), zorder=4
        )


def label_against_flops(
    canvas: Canvas,
    axes: Axes,
    data: FigureData,
    y_label: str,
    show: Any,
    *,
    columns: int = 1,
    has_x_label: bool = True,
) -> None:
    """Set the axes, and mark the range of the runs."""
    theme, box = canvas.theme, axes.dataLim
    set_log_axis(
        axes, "x", *add_margin([box.x0, box.x1]), "power", most=5 if canvas.is_narrow or columns > 1 else 8
    )
    set_log_axis(axes, "y", *add_margin([box.y0, box.y1], 0.08), show)
    x_label = f"C, training FLOPs ({data.names.flops})" if has_x_label else ""
    style_axes(axes, theme, x_label, y_label, wrap=canvas.characters(), y_wrap=canvas.characters("height"))
    if data.has_flops_range:
        axes.axvspan(*data.fit.flops_range, color=theme.faint, alpha=0.5, lw=0, zorder=0)


def law_legend(canvas: Canvas, data: FigureData, curve: Curve, *, law: str = "fitted law") -> list[Any]:
    """The signs of :func:`draw_law`, :func:`draw_minima` and :func:`label_against_flops`."""
    theme, (low, high) = canvas.theme, data.fit.flops_range
    has_beyond = curve.flops[0] < low * 0.99 or curve.flops[-1] > high * 1.01
    handles = law_lines(theme, data, law, 1.4, has_beyond=has_beyond)
    if curve.low is not None:
        handles.append(Patch(color=theme.law, alpha=BAND, lw=0, label=f"{data.fit.level:.0%} interval"))
    if data.has_flops_range:
        handles.append(Patch(color=theme.faint, alpha=0.5, lw=0, label="range of the runs"))
    return handles


def law_lines(theme: Theme, data: FigureData, law: str, width: float, *, has_beyond: bool) -> list[Any]:
    """The signs of a law: solid within the fitted budgets, which one budget does not show, and dashed beyond."""
    handles: list[Any] = []
    if data.has_flops_range:
        handles.append(Line2D([], [], color=theme.law, lw=width * theme.line, label=law))
    if has_beyond:
        label = "beyond the runs" if handles else f"{law}, beyond the runs"
        handles.append(Line2D([], [], color=theme.law, lw=theme.line, ls="--", label=label))
    return handles


def minima_legend(canvas: Canvas, data: FigureData) -> list[Any]:
    """The signs of the minima and of the predictions."""
    theme, handles = canvas.theme, []
    if any(not minimum.at_edge for minimum in data.minima):
        handles.append(Line2D([], [], **minimum_style(theme, theme.grey, False), label="IsoFLOP minimum"))
    if any(minimum.at_edge for minimum in data.minima):
        ring = minimum_style(theme, theme.grey, True)
        handles.append(Line2D([], [], **ring, label="lowest at the edge, not used"))
    if data.budgets:
        handles.append(Line2D([], [], **theme.hollow(theme.ink, "D", 1.0), label="predicted"))
    return handles
