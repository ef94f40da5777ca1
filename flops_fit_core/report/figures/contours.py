"""Contours of the fitted loss over (N, D), with the runs and the efficient frontier."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.laws.surfaces import has_surface, point_surface
from flops_fit_core.report.axes import add_margin, mark_synthetic, set_log_axis, set_title, style_axes
from flops_fit_core.report.figures.against_flops import law_lines
from flops_fit_core.report.figures.canvas import new_canvas
from flops_fit_core.report.figures.data import FigureData

_CELLS = 160
"""Points of the grid per axis."""


def draw_contours(data: FigureData, ax: Any = None, style: str | None = None, width: str | None = None) -> Figure:
    """Lines of equal loss over N and D, log-log, with the runs and the efficient frontier.

    The frontier is (N_opt, D_opt) along C, dashed beyond the fitted budgets. Raises FitError for a law of the
    optimum only, such as ``isoflop``, and for a law with further inputs.
    """
    fit = data.fit
    if not has_surface(fit):
        raise FitError(
            f"kind 'contours' needs the loss at every N and D, and law {fit.law.name!r} has it at the optimum "
            "only: fit with fitter average or parametric"
        )
    surface = point_surface(fit)
    optima = data.optima
    canvas = new_canvas(ax, style, width, kind="contours", aspect=0.72)
    theme, axes = canvas.theme, canvas.panels[0]
    frontier = [optimum.params.value for optimum in optima], [optimum.tokens.value for optimum in optima]
    runs = [run.params for run in data.observations], [run.tokens for run in data.observations]
    x_limits, y_limits = (add_margin([*a, *b], 0.04) for a, b in zip(frontier, runs, strict=True))
    params, tokens = np.geomspace(*x_limits, _CELLS), np.geomspace(*y_limits, _CELLS)
    grid = np.meshgrid(np.log(params), np.log(tokens))
    loss = np.real(surface.loss(*(values.reshape(1, -1) for values in grid))).reshape(grid[0].shape)
    levels = contour_levels(loss)
    set_log_axis(axes, "x", *x_limits, "count", most=5 if canvas.is_narrow else 8)
    set_log_axis(axes, "y", *y_limits, "count")
    lines = axes.contour(params, tokens, loss, levels, colors=[theme.grey], linewidths=0.7 * theme.line, zorder=1)
    is_fitted = [fit.flops_range[0] * 0.999 <= item.flops <= fit.flops_range[1] * 1.001 for item in optima]
    axes.plot(*frontier, "--", color=theme.law, lw=theme.line, zorder=2)
    axes.plot(*np.array(frontier)[:, is_fitted], "-", color=theme.law, lw=1.6 * theme.line, zorder=2)
    excluded = [run.id in fit.excluded for run in data.observations]
    scale = theme.dot_scale(len(excluded))
    positions, is_excluded = np.array(runs, dtype=float), np.array(excluded, dtype=bool)
    axes.plot(*positions[:, ~is_excluded], **theme.dot(theme.second, scale), zorder=3)
    axes.plot(*positions[:, is_excluded], **theme.hollow(theme.second, "o", scale), zorder=3)
    axes.plot(
        [item.params.value for item in data.predicted], [item.tokens.value for item in data.predicted],
        **theme.hollow(theme.ink, "D", 1.0), zorder=4,
    )  # fmt: skip
    for text in axes.clabel(lines, fontsize=theme.size("note"), colors=[theme.ink], fmt="%.4g", inline_spacing=3):
        text.set_path_effects([patheffects.withStroke(linewidth=2, foreground=theme.background)])
    style_axes(
        axes,
        theme,
        f"N, {data.names.params}",
        f"D, {data.names.unit}",
        wrap=canvas.characters(),
        y_wrap=canvas.characters("height"),
    )
    set_title(axes, theme, f"Lines: L by the law, {data.names.loss}", wrap=int(1.1 * canvas.characters()))
    if data.synthetic:
        mark_synthetic(axes, theme)
    signs = law_lines(theme, data, "efficient frontier", 1.6, has_beyond=not all(is_fitted))
    if data.observations:
        signs.append(Line2D([], [], **theme.dot(theme.second, scale), label="run"))
    if any(excluded):
        signs.append(Line2D([], [], **theme.hollow(theme.second, "o", scale), label="run not used by the fit"))
    if data.budgets:
        signs.append(Line2D([], [], **theme.hollow(theme.ink, "D", 1.0), label="predicted"))
    canvas.add_legend(signs)
    return canvas.figure


def contour_levels(loss: Any) -> list[float]:
    """About twelve round losses at equal distances.

    They leave out the highest tenth of the grid, where the lines would be dense.
    """
    low, high = np.quantile(loss[np.isfinite(loss)], [0.005, 0.9])
    ticks = MaxNLocator(12, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high] or [float(low)]
