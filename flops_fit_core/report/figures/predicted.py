"""Predicted against measured loss, with held-out points of a backtest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flops_fit_core import numbers
from flops_fit_core.errors import FitError
from flops_fit_core.fitting import Backtest, predict_loss
from flops_fit_core.fitting.laws.surfaces import has_surface
from flops_fit_core.fitting.predict import without_draws
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
from flops_fit_core.report.figures.isoflop import add_color_bar
from flops_fit_core.report.theme import MAX_NAMED_BUDGETS


@dataclass(frozen=True)
class FittedLoss:
    """A measured loss and the law's."""

    measured: float
    predicted: float
    budget: float
    used: bool


def draw_predicted(data: FigureData, ax: Any = None, style: str | None = None, width: str | None = None) -> Figure:
    """The law's loss against the measured loss of every run, with held-out points of a backtest.

    Hollow diamonds are predictions of the largest budget by a fit without it, with their intervals. For a law of
    the optimum only, the points are the IsoFLOP minima.
    """
    points = predict_runs(data)
    held_out = data.backtest
    canvas = new_canvas(ax, style, width, kind="predicted", aspect=0.72)
    theme, axes = canvas.theme, canvas.panels[0]
    budgets = sorted({float(f"{point.budget:.2g}") for point in points})
    colors = dict(zip(budgets, theme.budget_colors(budgets), strict=True))
    scale = theme.dot_scale(len(points))
    for budget, color in colors.items():
        for used, marker in ((True, theme.dot(color, scale)), (False, theme.hollow(color, "o", scale))):
            chosen = [item for item in points if item.used == used and float(f"{item.budget:.2g}") == budget]
            axes.plot([item.measured for item in chosen], [item.predicted for item in chosen], **marker, zorder=3)
    values = [value for point in points for value in (point.measured, point.predicted)]
    for item in held_out.held_out if held_out else ():
        low, high = item.predicted.low, item.predicted.high
        if low is not None and high is not None:
            axes.plot([item.loss] * 2, [low, high], "-", color=theme.second, lw=0.7 * theme.line, zorder=3.5)
            values += [low, high]
        axes.plot(item.loss, item.predicted.value, **theme.hollow(theme.second, "D", 0.9), zorder=4)
        values += [item.loss, item.predicted.value]
    limits = add_margin(values)
    axes.plot(limits, limits, "-", color=theme.ink, lw=0.7, zorder=1)
    for axis in ("x", "y"):
        set_log_axis(axes, axis, *limits, "ratio", most=6)
    loss = data.names.loss
    style_axes(
        axes,
        theme,
        f"measured {loss}",
        "predicted loss",
        wrap=canvas.characters(),
        y_wrap=canvas.characters("height"),
    )
    set_title(axes, theme, describe_errors(points, held_out), wrap=int(1.1 * canvas.characters()))
    if data.synthetic:
        mark_synthetic(axes, theme)
    _add_signs(canvas, data, points, budgets, colors, held_out)
    return canvas.figure


def predict_runs(data: FigureData) -> list[FittedLoss]:
    """The law's loss of every run; of every IsoFLOP minimum for a law of the optimum only. Raises FitError."""
    fit = data.fit
    point_fit = without_draws(fit)
    if has_surface(fit):
        points = [
            FittedLoss(
                run.loss,
                predict_loss(point_fit, run.params, run.tokens, run.unique_tokens, run.inputs).value,
                run.budget or run.flops,
                run.id not in fit.excluded,
            )
            for run in data.observations
        ]
    else:
        points = [
            FittedLoss(minimum.loss, data.optimum(minimum.budget).loss.value, minimum.budget, True)
            for minimum in data.minima
            if not minimum.at_edge
        ]
    if not points:
        raise FitError("kind 'predicted' compares the law with runs: give them, such as observations=runs")
    if min(min(point.measured, point.predicted) for point in points) <= 0:
        raise FitError("kind 'predicted' has logarithmic axes, and some losses are not positive")
    return points


def describe_errors(points: list[FittedLoss], held_out: Backtest | None) -> str:
    """The error of the law for its runs, and for the held-out budget."""
    errors = [np.log(point.predicted / point.measured) for point in points if point.used]
    text = f"Root mean square error of the fit: {numbers.short_share(float(np.sqrt(np.mean(np.square(errors)))))}"
    if held_out is not None:
        text += f". Mean error of the held-out budget: {numbers.short_share(held_out.mean_abs_error)}"
    return text


def _add_signs(
    canvas: Canvas, data: FigureData, points: list[FittedLoss], budgets: list[float], colors: Any, held_out: Any
) -> None:
    theme = canvas.theme
    signs: list[Any] = [Line2D([], [], color=theme.ink, lw=0.7, label="predicted = measured")]
    if held_out is not None:
        label = f"held out, C > {format_power(held_out.above)}"
        signs.append(Line2D([], [], **theme.hollow(theme.second, "D", 0.9), label=label))
    if not all(point.used for point in points):
        signs.append(Line2D([], [], **theme.hollow(theme.grey, "o", 1), label="run not used by the fit"))
    add_signs_and_budgets(canvas, signs, budgets, colors)


def add_signs_and_budgets(canvas: Canvas, signs: list[Any], budgets: list[float], colors: Any) -> None:
    """A legend of signs, and the colours of the budgets: to the right, or below a narrow figure."""
    theme = canvas.theme
    dots = [Line2D([], [], **theme.dot(colors[budget]), label=format_power(budget)) for budget in budgets]
    if len(budgets) > MAX_NAMED_BUDGETS:
        canvas.add_legend(signs)
        add_color_bar(canvas, budgets)
    elif canvas.is_new and canvas.is_narrow:
        for dot in dots:
            dot.set_label(f"C = {dot.get_label()}")
        canvas.add_legend([*signs, *dots])
    else:
        canvas.add_legend(signs)
        canvas.add_side_legend(dots, "C (FLOPs)", "lower right")
