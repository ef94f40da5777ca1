"""The figures of a fitted law without a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from flops_fit_core.fitting import optimum
from flops_fit_core.records import LawFit, Observation
from flops_fit_core.report.figures.data import FigureData
from flops_fit_core.report.figures.kinds import draw_figure


def plot_fit(fit: LawFit, kind: str | None, observations: Sequence[Observation], **look: Any) -> Figure:
    """The figure of :meth:`LawFit.plot`. ``look`` is ax, style, width and path."""
    largest = fit.flops_range[1]
    data = FigureData(observations, fit, lambda flops: optimum(fit, flops), [10 * largest, 100 * largest])
    default = "isoflop" if observations or fit.minima else "optimum"
    return draw_figure(data, kind or default, **look)
