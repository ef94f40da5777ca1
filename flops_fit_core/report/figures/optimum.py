"""N_opt and D_opt against C."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from matplotlib.figure import Figure

from flops_fit_core.report.axes import mark_synthetic
from flops_fit_core.report.datatable import show_exponent
from flops_fit_core.report.figures.against_flops import (
    curve_of,
    draw_law,
    draw_minima,
    label_against_flops,
    law_legend,
    minima_legend,
)
from flops_fit_core.report.figures.canvas import new_canvas
from flops_fit_core.report.figures.data import FigureData


def draw_optimum(data: FigureData, ax: Any = None, style: str | None = None, width: str | None = None) -> Figure:
    """N_opt and D_opt against C, log-log, with the intervals of the fit as bands.

    The curve is dashed beyond the fitted budgets, up to the largest of ``data.budgets``, which get a diamond each.
    Hollow stars are the IsoFLOP minima; a ring is the lowest size of a profile without a minimum inside its sizes.
    """
    optima, predicted = data.optima, data.predicted
    canvas = new_canvas(ax, style, width, kind="optimum", columns=2, aspect=0.46)
    theme = canvas.theme
    is_stacked = canvas.is_new and width == "column"
    for axes, name, letter, exponent in zip(
        canvas.panels, ("params", "tokens"), ("N", "D"), ("a", "b"), strict=True
    ):
        curve, points = (curve_of(items, attrgetter(name)) for items in (optima, predicted))
        draw_law(axes, theme, data, curve, points)
        draw_minima(axes, theme, data, attrgetter(name))
        quantity = data.names.params if name == "params" else data.names.unit
        label = rf"${letter}_{{\mathrm{{opt}}}}$, {quantity}"
        has_x_label = not is_stacked or name == "tokens"
        label_against_flops(
            canvas, axes, data, label, "count", columns=1 if is_stacked else 2, has_x_label=has_x_label
        )
        if exponent in data.fit.exponents:
            text = rf"${letter}_{{\mathrm{{opt}}}} \propto C^{{\,{exponent}}}$,  {exponent} = "
            text += show_exponent(data.fit.exponents[exponent])
            axes.set_title(text, fontsize=theme.size("note"), color=theme.ink, loc="left")
        if data.synthetic:
            mark_synthetic(axes, theme)
    canvas.add_legend([*law_legend(canvas, data, curve), *minima_legend(canvas, data)])
    return canvas.figure
