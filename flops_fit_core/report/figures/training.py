"""Training curves: held-out loss against training FLOPs."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from flops_fit_core.errors import FitError
from flops_fit_core.report.axes import add_margin, mark_synthetic, set_log_axis, set_title, style_axes
from flops_fit_core.report.curve_choice import choose_curves
from flops_fit_core.report.figures.canvas import new_canvas
from flops_fit_core.report.figures.data import FigureData
from flops_fit_core.report.figures.isoflop import name_budgets


def draw_training(data: FigureData, ax: Any = None, style: str | None = None, width: str | None = None) -> Figure:
    """Held-out loss against training FLOPs so far, one line per run, in the colour of its budget, log-log.

    A study of many runs shows a few per budget, with the lowest loss in front, and states their number.
    Evaluations before 1% of a run are left out: their losses would compress the rest. Raises FitError without
    evaluations during training.
    """
    curves = [] if data.read_curves is None else [curve for curve in data.read_curves() if len(curve.loss) > 1]
    if not curves:
        raise FitError(
            "kind 'training' needs a study with evaluations during training: set num_evals of the trainer before "
            "you train, for example --set trainer.num_evals=30"
        )
    choice = choose_curves([(curve.budget, curve.loss[-1]) for curve in curves])
    is_thinned = len(choice.shown) < len(curves)
    canvas = new_canvas(ax, style, width, kind="training", aspect=0.62)
    theme, axes = canvas.theme, canvas.panels[0]
    budgets = sorted({curve.budget for curve in curves if curve.budget is not None})
    colors: dict[float | None, Any] = dict(zip(budgets, theme.budget_colors(budgets), strict=True))
    flops, losses = [], []
    ends: dict[float | None, tuple[float, float]] = {}
    starts: dict[float | None, tuple[float, float]] = {}
    for place in choice.shown:
        curve, is_front = curves[place], is_thinned and place in choice.best
        points = [
            (c, loss) for c, loss in zip(curve.flops, curve.loss, strict=True) if c >= 0.01 * curve.flops[-1]
        ]
        x, y = [c for c, _ in points], [loss for _, loss in points]
        color, order = colors.get(curve.budget, theme.grey), 2.5 if is_front else 2.0
        share = 1.0 if is_front else 0.4 if is_thinned else 0.7
        axes.plot(x, y, "-", color=color, lw=share * theme.line, zorder=order)
        axes.plot(x[-1], y[-1], **theme.dot(color, 0.9 if is_front else 0.7), zorder=order + 1)
        flops += x
        losses += y
        starts[curve.budget] = max(starts.get(curve.budget, (0.0, 0.0)), (x[0], y[0]), key=lambda start: start[1])
        ends[curve.budget] = max(ends.get(curve.budget, (0.0, 0.0)), (x[-1], y[-1]), key=lambda end: end[1])
    set_log_axis(axes, "x", *add_margin(flops), "power", most=5 if canvas.is_narrow else 8)
    set_log_axis(axes, "y", *add_margin(losses, 0.08), "ratio")
    label = f"C, training FLOPs so far ({data.names.flops})"
    style_axes(axes, theme, label, f"L, {data.names.loss}", wrap=canvas.characters())
    if is_thinned:
        title = f"{len(choice.shown)} of {len(curves):,} runs. Thick: lowest loss of each budget."
        set_title(axes, theme, title, wrap=int(1.1 * canvas.characters()))
    if data.synthetic:
        mark_synthetic(axes, theme)
    sides = ("above", "right", "above right", "above left", "below")
    places = [
        [(*starts[budget], side) for side in ("above", "above right", "above left", "left")]
        + [(*ends[budget], side) for side in sides]
        for budget in budgets
    ]
    name_budgets(canvas, axes, budgets, [colors[budget] for budget in budgets], places)
    return canvas.figure
