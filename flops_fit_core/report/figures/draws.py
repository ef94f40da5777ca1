"""The draws of alpha and beta, with the point estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flops_fit_core.errors import FitError
from flops_fit_core.records import LawFit
from flops_fit_core.report.axes import mark_synthetic, set_title, style_axes
from flops_fit_core.report.figures.canvas import new_canvas
from flops_fit_core.report.figures.data import FigureData


def draw_draws(data: FigureData, ax: Any = None, style: str | None = None, width: str | None = None) -> Figure:
    """Beta against alpha of every bootstrap draw, with the point estimate and the line alpha = beta.

    On that line, a = beta / (alpha + beta) is 1/2: N and D grow equally with C. An average shows the draws of each
    of its laws with these parameters. Raises FitError for other laws, and for a fit without draws.
    """
    series = read_draws(data.fit)
    canvas = new_canvas(ax, style, width, kind="draws", aspect=0.72)
    theme, axes = canvas.theme, canvas.panels[0]
    looks = [(theme.law, "o"), (theme.second, "s"), (theme.grey, "^"), (theme.budgets(0.35), "v")]
    signs: list[Any] = []
    for (name, point, alpha, beta), (color, marker) in zip(series, looks, strict=False):
        axes.plot(alpha, beta, marker, ms=0.35 * theme.marker, color=color, mew=0, zorder=2)
        axes.plot(*point, "D", ms=1.7 * theme.marker, color=color, mec=theme.ink, mew=1.2, zorder=4)
        signs.append(Line2D([], [], marker=marker, ls="none", ms=theme.marker, color=color, mew=0, label=name))
    _frame(axes, series)
    low = max(axes.get_xlim()[0], axes.get_ylim()[0])
    high = min(axes.get_xlim()[1], axes.get_ylim()[1])
    if high > low:
        axes.plot([low, high], [low, high], "--", color=theme.ink, lw=0.7, zorder=1)
        signs.append(Line2D([], [], color=theme.ink, lw=0.7, ls="--", label="a = 1/2"))
    signs.insert(len(series), Line2D([], [], marker="D", ls="none", ms=1.3 * theme.marker, color=theme.grey,
                                     mec=theme.ink, label="point estimate"))  # fmt: skip
    style_axes(axes, theme, r"$\alpha$: exponent of N", r"$\beta$: exponent of D")
    count = sum(len(alpha) for _, _, alpha, _ in series)
    is_sum = all(name.startswith("chinchilla") for name, *_ in series)
    title = (r"$L = E + A / N^\alpha + B / D^\beta$, " if is_sum else "") + f"{count:,} bootstrap draws"
    set_title(axes, theme, title, wrap=200)
    if data.synthetic:
        mark_synthetic(axes, theme)
    canvas.add_legend(signs)
    return canvas.figure


def _frame(axes: Any, series: Any) -> None:
    """Limits that hold 99% of the draws and every point estimate."""
    for which, column in (("x", 2), ("y", 3)):
        values = np.concatenate([np.asarray(item[column]) for item in series])
        low, high = np.quantile(values, [0.005, 0.995])
        points = [item[1][column - 2] for item in series]
        low, high = min(low, *points), max(high, *points)
        margin = 0.08 * (high - low) or 0.05
        (axes.set_xlim if which == "x" else axes.set_ylim)(low - margin, high + margin)


def read_draws(fit: LawFit) -> list[tuple[str, tuple[float, float], Any, Any]]:
    """Name, point estimate, draws of alpha and draws of beta of the laws that have them. Raises FitError."""
    laws = [(member.law, member.draws, member.drift) for member in fit.members] or [(fit.law, fit.draws, 0.0)]
    series = [
        (
            law.name + (", largest runs favoured" if drift else ""),
            (law.parameters["alpha"], law.parameters["beta"]),
            draws["alpha"],
            draws["beta"],
        )
        for law, draws, drift in laws
        if {"alpha", "beta"} <= set(law.parameters) and len(draws.get("alpha", ()))
    ]
    if series:
        return series
    names = ", ".join(dict.fromkeys(law.name for law, *_ in laws))
    if any({"alpha", "beta"} <= set(law.parameters) for law, *_ in laws):
        raise FitError(f"kind 'draws' needs bootstrap draws, and this fit of law {names} has none")
    raise FitError(
        f"kind 'draws' shows alpha and beta, and law {names} does not have both: fit with fitter parametric, or "
        "with fitter law and law chinchilla"
    )
