"""Figures of runs and fitted laws, one file per kind.

:func:`draw_figure` draws a kind from a :class:`FigureData`. No function uses pyplot or changes global state, so
figures can be drawn in any thread and in any notebook. The functions below draw single kinds from runs and a law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from flops_fit_core.errors import FitError
from flops_fit_core.records import LawFit, Observation, Optimum
from flops_fit_core.report.figures.canvas import without_latex
from flops_fit_core.report.figures.data import FigureData, Names, TrainingCurve
from flops_fit_core.report.figures.kinds import KINDS, FigureKind, draw_all, draw_figure
from flops_fit_core.report.figures.saving import render_svg, save_figure, write_figure

__all__ = [
    "KINDS",
    "FigureData",
    "FigureKind",
    "Names",
    "TrainingCurve",
    "draw_all",
    "draw_figure",
    "isoflop_figure",
    "optimum_figure",
    "render_svg",
    "residual_figure",
    "runs_figure",
    "save_figure",
    "tokens_per_param_figure",
    "without_latex",
    "write_figure",
]


def isoflop_figure(
    observations: Sequence[Observation], fit: LawFit, *, synthetic: bool = False, **look: Any
) -> Figure:
    """Loss against N per budget, with the profiles of the fit. ``look`` is ax, style and width."""
    return draw_figure(FigureData(observations, fit, synthetic=synthetic), "isoflop", **look)


def runs_figure(
    observations: Sequence[Observation],
    *,
    params_name: str,
    flops_name: str,
    unit: str,
    eval_set: str | None = None,
    synthetic: bool = False,
    **look: Any,
) -> Figure:
    """Loss against N per budget, without a law, for studies to which no law can be fitted."""
    names = Names(params_name, flops_name, unit, eval_set)
    return draw_figure(FigureData(observations, conventions=names, synthetic=synthetic), "isoflop", **look)


def optimum_figure(
    fit: LawFit,
    optimum: Callable[[float], Optimum],
    *,
    observations: Sequence[Observation] = (),
    budgets: Sequence[float] = (),
    synthetic: bool = False,
    **look: Any,
) -> Figure:
    """N_opt and D_opt against C, with a point for each of ``budgets``."""
    data = FigureData(observations, fit, optimum, budgets, synthetic=synthetic)
    return draw_figure(data, "optimum", **look)


def tokens_per_param_figure(
    fit: LawFit,
    optimum: Callable[[float], Optimum],
    *,
    observations: Sequence[Observation] = (),
    budgets: Sequence[float] = (),
    synthetic: bool = False,
    **look: Any,
) -> Figure:
    """D_opt / N_opt against C, with a point for each of ``budgets``."""
    data = FigureData(observations, fit, optimum, budgets, synthetic=synthetic)
    return draw_figure(data, "tokens-per-param", **look)


def residual_figure(
    observations: Sequence[Observation], fit: LawFit, *, synthetic: bool = False, **look: Any
) -> Figure | None:
    """Residuals of the runs against N / N_opt(C); None for a law that gives no loss at (N, D), and for no runs."""
    try:
        return draw_figure(FigureData(observations, fit, synthetic=synthetic), "residuals", **look)
    except FitError:
        return None
