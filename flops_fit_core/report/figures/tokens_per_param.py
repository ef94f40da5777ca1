"""Tokens per parameter at the optimum against C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flops_fit_core.records import Optimum
from flops_fit_core.report.axes import mark_synthetic, set_title
from flops_fit_core.report.figures.against_flops import (
    Curve,
    curve_of,
    draw_law,
    draw_minima,
    label_against_flops,
    law_legend,
    minima_legend,
)
from flops_fit_core.report.figures.canvas import new_canvas
from flops_fit_core.report.figures.data import FigureData


def draw_tokens_per_param(
    data: FigureData, ax: Any = None, style: str | None = None, width: str | None = None
) -> Figure:
    """D_opt / N_opt against C.

    The band reaches from the low end of D over the high end of N to the high end of D over the low end of N: at a
    given C, a large D means a small N.
    """
    curve, points = _ratios(data.optima), _ratios(data.predicted)
    canvas = new_canvas(ax, style, width, kind="tokens-per-param", aspect=0.58)
    axes = canvas.panels[0]
    draw_law(axes, canvas.theme, data, curve, points)
    draw_minima(axes, canvas.theme, data, lambda minimum: minimum.tokens / minimum.params)
    label = rf"$D_{{\mathrm{{opt}}}} / N_{{\mathrm{{opt}}}}$, {data.names.unit} per parameter"
    label_against_flops(canvas, axes, data, label, "ratio")
    set_title(axes, canvas.theme, f"N: {data.names.params}", wrap=canvas.characters())
    if data.synthetic:
        mark_synthetic(axes, canvas.theme)
    canvas.add_legend([*law_legend(canvas, data, curve), *minima_legend(canvas, data)])
    return canvas.figure


def _ratios(optima: Sequence[Optimum]) -> Curve:
    params = curve_of(optima, lambda optimum: optimum.params)
    tokens = curve_of(optima, lambda optimum: optimum.tokens)
    value = np.divide(tokens.value, params.value)
    if params.low is None or tokens.low is None:
        return Curve(params.flops, value)
    return Curve(params.flops, value, np.divide(tokens.low, params.high), np.divide(tokens.high, params.low))
