"""Residuals of a fitted law L(N, D) against the distance from the optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flops_fit_core.errors import FitError
from flops_fit_core.report.axes import add_margin, mark_synthetic, set_log_axis, set_title, style_axes
from flops_fit_core.report.figures.against_flops import BAND
from flops_fit_core.report.figures.canvas import Canvas, new_canvas
from flops_fit_core.report.figures.data import FigureData
from flops_fit_core.report.figures.predicted import add_signs_and_budgets
from flops_fit_core.report.residuals import NOISE_LEVEL, Residuals, compute_residuals
from flops_fit_core.report.theme import Theme

_GROUPS, _MIN_GROUPED_RUNS = 5, 15


def draw_residuals(data: FigureData, ax: Any = None, style: str | None = None, width: str | None = None) -> Figure:
    """Residuals of ln L in percent against N / N_opt(C), coloured by budget, with the band of the noise.

    Diamonds are means of neighbouring runs with standard errors: if those near N_opt lie on one side of zero, the
    law misses the losses near the optimum. Raises FitError for a law of the optimum only, and without runs.
    """
    residuals = compute_residuals(data.observations, data.fit)
    if residuals is None:
        raise FitError(
            f"kind 'residuals' needs runs and the loss at every N and D; law {data.fit.law.name!r} with "
            f"{len(data.observations)} runs has none: use fitter average or parametric, and give observations="
        )
    canvas = new_canvas(ax, style, width, kind="residuals", aspect=0.62)
    theme, axes = canvas.theme, canvas.panels[0]
    if residuals.half_width is not None:
        axes.axhspan(-residuals.half_width, residuals.half_width, color=theme.grey, alpha=BAND, lw=0, zorder=0)
    axes.axhline(0, color=theme.ink, lw=0.9, zorder=1)
    axes.axvline(1, color=theme.ink, lw=0.7, ls=":", zorder=1)
    budgets = sorted({float(f"{budget:.2g}") for budget in residuals.budget})
    colors = dict(zip(budgets, theme.budget_colors(budgets), strict=True))
    scale = 1.1 * theme.dot_scale(len(residuals.ratio))
    rounded = np.array([float(f"{budget:.2g}") for budget in residuals.budget])
    for budget, color in colors.items():
        for is_used, marker in ((True, theme.dot(color, scale)), (False, theme.hollow(color, "o", scale))):
            chosen = (rounded == budget) & (residuals.used == is_used)
            axes.plot(residuals.ratio[chosen], residuals.percent[chosen], **marker, zorder=3)
    group_size = _draw_means(axes, residuals, theme)
    set_log_axis(
        axes, "x", *add_margin([*residuals.ratio.tolist(), 1.0]), "ratio", most=6 if canvas.is_narrow else 8
    )
    x_label = (
        r"N / $N_{\mathrm{opt}}$(C): size of a run over the optimal size at its C" + f"\nN: {data.names.params}"
    )
    y_label, y_wrap = "ln L - ln L of the law (%)", canvas.characters("height")
    style_axes(axes, theme, x_label, y_label, wrap=canvas.characters(), y_wrap=y_wrap)
    title = f"C: training FLOPs, {data.names.flops}. L: held-out loss."
    set_title(axes, theme, title, wrap=int(1.1 * canvas.characters()))
    if data.synthetic:
        mark_synthetic(axes, theme)
    _add_legends(canvas, residuals, budgets, colors, group_size=group_size)
    return canvas.figure


def _draw_means(axes: Axes, residuals: Residuals, theme: Theme) -> int:
    """Draw means of groups of the used runs, by N / N_opt, and return the size of a group; 0 for too few runs."""
    ratio, percent = residuals.ratio[residuals.used], residuals.percent[residuals.used]
    if len(ratio) < _MIN_GROUPED_RUNS:
        return 0
    groups = np.array_split(np.argsort(ratio, kind="stable"), _GROUPS)
    for rows in groups:
        mean, error = percent[rows].mean(), percent[rows].std(ddof=1) / np.sqrt(len(rows))
        place = float(np.exp(np.log(ratio[rows]).mean()))
        axes.errorbar(place, mean, error, **_mean_style(theme), ecolor=theme.ink, elinewidth=1.2, zorder=4)
    return round(len(ratio) / _GROUPS)


def _mean_style(theme: Theme) -> dict[str, Any]:
    return theme.hollow(theme.ink, "D", 1.4)


def _add_legends(
    canvas: Canvas, residuals: Residuals, budgets: list[float], colors: dict[float, Any], *, group_size: int
) -> None:
    theme = canvas.theme
    signs: list[Any] = []
    if residuals.half_width is not None:
        label = f"{NOISE_LEVEL:.0%} of the noise: ±{residuals.half_width:.2g}%"
        signs.append(Patch(color=theme.grey, alpha=BAND, lw=0, label=label))
    if group_size:
        label = f"mean of {group_size} runs, standard error"
        signs.append(Line2D([], [], **_mean_style(theme), label=label))
    if not residuals.used.all():
        signs.append(Line2D([], [], **theme.hollow(theme.grey, "o", 1.1), label="run not used by the fit"))
    add_signs_and_budgets(canvas, signs, budgets, colors)
