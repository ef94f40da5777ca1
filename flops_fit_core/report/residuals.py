"""Residuals of a fitted law L(N, D) against the distance from the optimum, and their figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy import stats

from flops_fit_core.errors import FitError
from flops_fit_core.fitting import optimum, predict_loss
from flops_fit_core.records import LawFit, Observation
from flops_fit_core.report.axes import (
    INK,
    SMALL,
    add_margin,
    format_power,
    mark_synthetic,
    plain_names,
    set_log_axis,
    style_axes,
)
from flops_fit_core.report.figures import (
    COLOR_MAP,
    GREY,
    MAX_LEGEND_BUDGETS,
    choose_colors,
    without_latex,
)

NOISE_LEVEL = 0.9
_BUDGET_POINTS = 25
"""N_opt is interpolated between this many budgets."""
_GROUPS, _MIN_GROUPED_RUNS = 5, 15

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Residuals:
    """Residuals of runs about a law, one entry per run."""

    ratio: Floats
    """N / N_opt(C), with C of the run."""
    percent: Floats
    """100 (ln L - ln L of the law)."""
    budget: Floats
    """The nominal budget of the run, or its C."""
    used: NDArray[np.bool_]
    """False for runs that the fit excluded."""
    half_width: float | None
    """Half the width of the noise's central 90% interval in percent; None without a degree of freedom."""


def compute_residuals(observations: Sequence[Observation], fit: LawFit) -> Residuals | None:
    """Residuals of the runs; None for a law that gives no loss at (N, D), such as ``isoflop``, and for no runs.

    The noise is one level for all runs: the scatter of the used runs, with Student's t.
    """
    point_fit = fit.model_copy(update={"draws": {}})
    try:
        predicted = [predict_loss(point_fit, run.params, run.tokens).value for run in observations]
        flops = np.array([run.flops for run in observations], dtype=float)
        grid = np.geomspace(flops.min(), flops.max() * (1 + 1e-9), _BUDGET_POINTS)
        best = [optimum(point_fit, float(budget)).params.value for budget in grid]
    except (FitError, ValueError):
        # The law of another plugin, a law of the optimum only, or no runs.
        return None
    ln_best = np.interp(np.log(flops), np.log(grid), np.log(best))
    ln_loss = np.log([run.loss for run in observations])
    percent = 100 * (ln_loss - np.log(predicted))
    used = np.array([run.id not in fit.excluded for run in observations])
    dof = int(used.sum()) - len(fit.law.parameters)
    half_width = None
    if dof > 0:
        sigma = np.sqrt(np.sum(percent[used] ** 2) / dof)
        half_width = float(stats.t.ppf((1 + NOISE_LEVEL) / 2, dof) * sigma)
    return Residuals(
        ratio=np.array([run.params for run in observations]) / np.exp(ln_best),
        percent=percent,
        budget=np.array([run.budget or run.flops for run in observations], dtype=float),
        used=used,
        half_width=half_width,
    )


@without_latex()
def residual_figure(observations: Sequence[Observation], fit: LawFit, *, synthetic: bool = False) -> Figure | None:
    """Residuals of ln L in percent against N / N_opt(C), coloured by budget, with the band of the noise.

    None if :func:`compute_residuals` has none. Diamonds are means of neighbouring runs with standard errors: if
    those near N_opt lie on one side of zero, the law misses the losses near the optimum.
    """
    residuals = compute_residuals(observations, fit)
    if residuals is None:
        return None
    fit = plain_names(fit)
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    if residuals.half_width is not None:
        axes.axhspan(-residuals.half_width, residuals.half_width, color=GREY, alpha=0.16, lw=0, zorder=0)
    axes.axhline(0, color=INK, lw=0.9, zorder=1)
    axes.axvline(1, color=INK, lw=0.7, ls=":", zorder=1)
    budgets = sorted({float(f"{budget:.2g}") for budget in residuals.budget})
    colors = dict(zip(budgets, choose_colors(budgets), strict=True))
    for ratio, percent, budget, used in zip(
        residuals.ratio, residuals.percent, residuals.budget, residuals.used, strict=True
    ):
        color = colors[float(f"{budget:.2g}")]
        style = {"mfc": color, "mec": "white", "mew": 0.5} if used else {"mfc": "white", "mec": color, "mew": 1.3}
        axes.plot(ratio, percent, "o", ms=4 if len(budgets) > MAX_LEGEND_BUDGETS else 6, zorder=3, **style)
    group_size = _draw_means(axes, residuals)
    set_log_axis(axes, "x", *add_margin([*residuals.ratio.tolist(), 1.0]), "ratio")
    style_axes(
        axes,
        r"$N / N_{\mathrm{opt}}(C)$: size of a run over the optimal size at its C"
        f"\nN: {fit.params_name}",
        "ln L of a run - ln L of the law (%)",
        wrap=80,
    )
    axes.set_title(
        f"C: training FLOPs, {fit.flops_name}. L: held-out loss.", fontsize=SMALL, color=INK, loc="left"
    )
    _add_legends(figure, axes, residuals, budgets, colors, group_size=group_size)
    if synthetic:
        mark_synthetic(axes)
    return figure


def _draw_means(axes: Axes, residuals: Residuals) -> int:
    """Draw means of groups of the used runs, by N / N_opt, and return the size of a group; 0 for too few runs."""
    ratio, percent = residuals.ratio[residuals.used], residuals.percent[residuals.used]
    if len(ratio) < _MIN_GROUPED_RUNS:
        return 0
    groups = np.array_split(np.argsort(ratio, kind="stable"), _GROUPS)
    for rows in groups:
        mean, error = percent[rows].mean(), percent[rows].std(ddof=1) / np.sqrt(len(rows))
        at = float(np.exp(np.log(ratio[rows]).mean()))
        axes.errorbar(
            at, mean, error, fmt="D", ms=6.5, mfc="white", mec=INK, ecolor=INK, elinewidth=1.2, zorder=2.5
        )
    return round(len(ratio) / _GROUPS)


def _add_legends(
    figure: Figure,
    axes: Axes,
    residuals: Residuals,
    budgets: Sequence[float],
    colors: dict[float, Any],
    *,
    group_size: int,
) -> None:
    style: dict[str, Any] = {"fontsize": SMALL, "frameon": False, "labelcolor": INK, "alignment": "left"}
    signs: list[Any] = []
    if residuals.half_width is not None:
        label = f"{NOISE_LEVEL:.0%} of the noise: ±{residuals.half_width:.2g}%"
        signs.append(Patch(color=GREY, alpha=0.16, lw=0, label=label))
    if group_size:
        label = f"mean of {group_size} runs, standard error"
        signs.append(Line2D([], [], marker="D", ls="none", ms=6.5, mfc="white", mec=INK, label=label))
    if not residuals.used.all():
        hollow: dict[str, Any] = {"mfc": "white", "mec": GREY, "mew": 1.3}
        signs.append(Line2D([], [], marker="o", ls="none", ms=6, label="run not used by the fit", **hollow))
    if signs:
        figure.legend(handles=signs, loc="outside lower center", ncols=len(signs), **style)
    if len(budgets) > MAX_LEGEND_BUDGETS:
        figure.colorbar(
            ScalarMappable(LogNorm(budgets[0], budgets[-1]), COLOR_MAP), ax=axes, label="C (FLOPs)", pad=0.01
        )
        return
    dots = [
        Line2D([], [], marker="o", ls="none", ms=6, color=colors[budget], mec="white", label=format_power(budget))
        for budget in budgets
    ]
    figure.legend(handles=dots, loc="outside right upper", title="C (FLOPs)", title_fontsize=SMALL, **style)
