"""The lowest loss against C: the law, its irreducible loss E, and the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flops_fit_core import numbers
from flops_fit_core.fitting import parameter_intervals
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.records import Interval, LawFit, Observation
from flops_fit_core.report.axes import mark_synthetic
from flops_fit_core.report.figures.against_flops import BAND, curve_of, draw_law, label_against_flops, law_legend
from flops_fit_core.report.figures.canvas import new_canvas
from flops_fit_core.report.figures.data import FigureData


def draw_frontier(data: FigureData, ax: Any = None, style: str | None = None, width: str | None = None) -> Figure:
    """L_opt against C, log-log, with its interval, the irreducible loss E, and the runs.

    Grey dots are the runs; the stepped line is their envelope, the lowest measured loss at or below each C. E has
    a band if the fit has draws; the axis may cut it off. E is left out for a law without this parameter.
    """
    optima, predicted = data.optima, data.predicted
    canvas = new_canvas(ax, style, width, kind="frontier", aspect=0.58)
    theme, axes = canvas.theme, canvas.panels[0]
    used = [run for run in data.observations if run.id not in data.fit.excluded]
    scale = 0.9 * theme.dot_scale(len(used))
    axes.plot([run.flops for run in used], [run.loss for run in used], **theme.dot(theme.grey, scale), zorder=1.7)
    steps = find_envelope(used)
    axes.step(*steps, where="post", color=theme.second, lw=0.8 * theme.line, zorder=1.6)
    curve, points = (curve_of(items, lambda item: item.loss) for items in (optima, predicted))
    draw_law(axes, theme, data, curve, points)
    irreducible = find_irreducible_loss(data.fit)
    if irreducible is not None:
        axes.axhline(irreducible.value, color=theme.ink, lw=0.8 * theme.line, ls=":", zorder=1)
        axes.update_datalim([(curve.flops[0], irreducible.value)])
    label_against_flops(canvas, axes, data, f"L, {data.names.loss}", "ratio")
    if irreducible is not None:
        if irreducible.low is not None and irreducible.high is not None:
            # After the limits: a wide interval would compress the rest.
            axes.axhspan(irreducible.low, irreducible.high, color=theme.ink, alpha=0.5 * BAND, lw=0, zorder=0.4)
        ends = numbers.span(irreducible.low, irreducible.high, lambda value: f"{value:.3g}")
        text = f"E = {irreducible.value:.3g}" + (f" ({ends})" if irreducible.low is not None else "")
        axes.annotate(
            text, (axes.get_xlim()[0], irreducible.value), xytext=(3, 3), textcoords="offset points",
            fontsize=theme.size("note"), color=theme.ink,
        )  # fmt: skip
    if data.synthetic:
        mark_synthetic(axes, theme)
    signs = law_legend(canvas, data, curve, law="lowest loss by the law")
    if used:
        signs.append(Line2D([], [], **theme.dot(theme.grey, scale), label="run"))
    if used and data.has_flops_range:
        signs.append(Line2D([], [], color=theme.second, lw=0.8 * theme.line, label="lowest measured"))
    if data.budgets:
        signs.append(Line2D([], [], **theme.hollow(theme.ink, "D", 1.0), label="predicted"))
    canvas.add_legend(signs, "upper right")
    return canvas.figure


def find_envelope(runs: Sequence[Observation]) -> tuple[list[float], list[float]]:
    """C and L of every run with a lower loss than all runs of smaller C; the last C is the largest."""
    flops: list[float] = []
    losses: list[float] = []
    for run in sorted(runs, key=lambda run: (run.flops, run.loss)):
        if not losses or run.loss < losses[-1]:
            flops.append(run.flops)
            losses.append(run.loss)
    if losses:
        flops.append(max(run.flops for run in runs))
        losses.append(losses[-1])
    return flops, losses


def find_irreducible_loss(fit: LawFit) -> Interval | None:
    """The loss at infinite N and D, with its interval: E; None for a law without E, and unless E > 0.

    An average of laws is the weighted geometric mean of their losses, and its draws are those of all its laws.
    """
    estimate = _average_of_members(fit) if fit.members else parameter_intervals(fit).get("E")
    if estimate is None or not (np.isfinite(estimate.value) and estimate.value > 0):
        return None
    if estimate.low is not None and estimate.low <= 0:
        return Interval(value=estimate.value)  # a log axis has no room for such an interval
    return estimate


def _average_of_members(fit: LawFit) -> Interval | None:
    values = [member.law.parameters.get("E", 0.0) for member in fit.members]
    if min(values) <= 0:
        return None
    weights = [member.weight for member in fit.members]
    draws = np.concatenate([np.asarray(member.draws.get("E", ()), dtype=float) for member in fit.members])
    return interval(float(np.exp(np.average(np.log(values), weights=weights))), draws, fit.level)
