"""The accuracy of a task against C: the runs, the forecast and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flops_fit_core.report.axes import add_margin, plain_text, set_log_axis, set_title, style_axes
from flops_fit_core.report.figures.against_flops import BAND
from flops_fit_core.report.figures.canvas import new_canvas, without_latex

if TYPE_CHECKING:
    from flops_fit_core.fitting import AccuracyForecast, TaskFit, TaskScores


@without_latex()
def accuracy_figure(fit: TaskFit, curve: Sequence[AccuracyForecast], scores: TaskScores | None = None) -> Figure:
    """The forecast of one further run along C, dashed beyond the runs, and the accuracy of every run.

    Args:
        fit: The fit of the task.
        curve: Its forecasts, ascending in C.
        scores: The runs; None for a saved fit.
    """
    canvas = new_canvas(None, None, None, kind="accuracy", aspect=0.58)
    theme, axes = canvas.theme, canvas.panels[0]
    flops = np.array([item.flops for item in curve])
    value = np.array([item.accuracy.value for item in curve])
    signs: list[Any] = []
    if curve[0].new_run.low is not None:
        low, high = ([getattr(item.new_run, end) for item in curve] for end in ("low", "high"))
        axes.fill_between(flops, low, high, color=theme.law, alpha=BAND, lw=0)
        signs.append(Patch(color=theme.law, alpha=BAND, lw=0, label=f"{fit.level:.0%} interval of a new run"))
    is_fitted = flops <= fit.flops_range[1] * 1.001
    axes.plot(flops, value, "--", color=theme.law, lw=theme.line)
    axes.plot(flops[is_fitted], value[is_fitted], color=theme.law, lw=1.4 * theme.line)
    signs.insert(0, Line2D([], [], color=theme.law, lw=1.4 * theme.line, label="forecast"))
    if scores is not None:
        axes.plot(scores.flops, scores.accuracy, **theme.dot(theme.ink), zorder=3)
        signs.append(Line2D([], [], **theme.dot(theme.ink), label="run"))
    if fit.chance is not None:
        axes.axhline(fit.chance, color=theme.grey, lw=0.8 * theme.line, ls=":")
        signs.append(Line2D([], [], color=theme.grey, lw=0.8 * theme.line, ls=":", label="chance"))
    set_log_axis(axes, "x", *add_margin([axes.dataLim.x0, axes.dataLim.x1]), "power", most=6)
    axes.set_ylim(0, 1)
    set_title(axes, theme, plain_text(fit.task))
    style_axes(axes, theme, "C, training FLOPs", "accuracy", wrap=canvas.characters())
    canvas.add_legend(signs)
    return canvas.figure
