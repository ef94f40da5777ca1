"""The table, the sentences and the figure of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flops_fit_core import numbers
from flops_fit_core.records import FAR
from flops_fit_core.report.answer import describe_distance
from flops_fit_core.report.datatable import Column, DataTable, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flops_fit_core.fitting import Comparison

_FIELDS = ("flops", "gain", "gain_low", "gain_high", "lower_bound", "probability", "smallest_detectable")


def gains_table(comparison: Comparison) -> DataTable:
    """The gain per budget, with its interval and the probability that it is above 1.

    Rows beyond the common budgets start with the distance. Beyond 100 times the largest, intervals come first, and
    gains have one digit.
    """
    low, high = comparison.flops_range
    rows = tuple(
        {
            "flops": item.flops,
            "gain": item.gain.value,
            "gain_low": item.gain.low,
            "gain_high": item.gain.high,
            "lower_bound": item.lower,
            "probability": item.probability,
            "smallest_detectable": item.smallest_detectable,
        }
        for item in comparison.gains
    )
    gain = Column("gain", lambda row: _show_gain(row["gain"], row["flops"] / high))
    interval = Column(f"{comparison.level:.0%} interval", lambda row: _show_interval(row, row["flops"] / high))
    distance = Column("", lambda row: describe_distance(row["flops"], (low, high)), align_left=True)
    is_outside = any(describe_distance(item.flops, (low, high)) for item in comparison.gains)
    are_far = any(item.flops > FAR * high for item in comparison.gains)
    return DataTable(
        title="Compute-equivalent gain of B over A",
        caption="A needs gain x C for the loss that B reaches with C.",
        fields=_FIELDS,
        rows=rows,
        columns=(
            *([distance] if is_outside else []),
            Column("C", lambda row: numbers.scientific(row["flops"])),
            *([interval, gain] if are_far else [gain, interval]),
            Column("P(B beats A)", lambda row: _show_probability(row["probability"])),
            Column("detectable", _show_detectable),
        ),
        diagnostics=comparison.diagnostics,
    )


def _show_gain(gain: float, factor: float) -> str:
    """A gain. ``factor``: C over the largest common C."""
    return f"{gain:.4g}" if factor <= FAR else f"~{gain:.1g}"


def _show_interval(row: Row, factor: float) -> str:
    if row["gain_low"] is None:
        return "none"
    digits = 4 if factor <= FAR else 1
    return f"{row['gain_low']:.{digits}g} to {row['gain_high']:.{digits}g}"


def _show_detectable(row: Row) -> str:
    return "none" if row["smallest_detectable"] is None else f"{row['smallest_detectable']:.4g}"


def _show_probability(value: float) -> str:
    return "> 99.9%" if value > 0.999 else "< 0.1%" if value < 0.001 else f"{value:.1%}"


def describe_comparison(comparison: Comparison, *, with_gate: bool = True) -> list[str]:
    """Sentences: names, design and noise, exponents, recipes, the detectable gain, the gate."""
    lines = [f"A: {comparison.first}", f"B: {comparison.second}"]
    lines += [_describe_design(comparison), _describe_exponents(comparison)]
    if comparison.differences:
        lines.append(f"Recipes (A -> B): {', '.join(comparison.differences)}")
    if comparison.answered:
        lines.append(
            f"With this design and noise, 90% of studies show that a gain of {_show_detectable_gains(comparison)} "
            f"is above {comparison.gate:g} (5% level)"
        )
    return [*lines, describe_gate(comparison)] if with_gate else lines


def _show_detectable_gains(comparison: Comparison) -> str:
    return ", ".join(
        f"{item.smallest_detectable:.4g} at C = {numbers.scientific(item.flops)}" for item in comparison.gains
    )


def _describe_exponents(comparison: Comparison) -> str:
    change = comparison.change
    low, high = change.low or 0.0, change.high or 0.0
    trend = "grows with C" if low > 0 else "falls with C" if high < 0 else "shows no change with C"
    return (
        f"The gain {trend}: gain ~ C^delta, delta = {change.value:.3f} ({low:.3f} to {high:.3f}). Probability of "
        f"shared exponents (delta = 0): {_show_probability(comparison.shared_exponents)}. All intervals allow "
        "separate exponents"
    )


def _describe_design(comparison: Comparison) -> str:
    first, second = comparison.n_runs
    text = f"{first} + {second} runs, {comparison.n_shared_cells} common (N, D) cells"
    if comparison.n_pairs:
        text += f", {comparison.n_pairs} pairs with equal N, D and seed"
    text += f"; noise between equal runs: {numbers.share(comparison.noise, 2)} of the loss"
    if comparison.pair_correlation is not None:
        # The sum with 0 replaces -0.00 by 0.00.
        text += f", correlation within a pair {round(comparison.pair_correlation, 2) + 0.0:.2f}"
    return text


def describe_gate(comparison: Comparison) -> str:
    """Whether the gate promotes B, and why."""
    gate = f"Gate {comparison.gate:g}"
    if not comparison.answered:
        return f"{gate}: no answer, because a gain has no interval"
    bounds = ", ".join(f"{item.lower:.4g} at C = {numbers.scientific(item.flops)}" for item in comparison.gains)
    if comparison.promoted:
        return f"{gate}: B is promoted. Lower 95% bound of the gain: {bounds}"
    return f"{gate}: B is not promoted. Lower 95% bound of the gain: {bounds}; it must be above the gate"


def gain_figure(comparison: Comparison) -> Figure:
    """The gain and its interval against C, with the gate and the requested budgets."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from flops_fit_core.report.axes import plain_text, set_title, style_axes
    from flops_fit_core.report.figures.against_flops import BAND
    from flops_fit_core.report.figures.canvas import new_canvas

    canvas = new_canvas(None, None, None, kind="gain")
    theme, axes = canvas.theme, canvas.panels[0]
    flops, gain, low, high = (list(column) for column in zip(*comparison.curve, strict=True))
    signs: list[Any] = [Line2D([], [], color=theme.law, marker="o", label="gain of B over A")]
    signs.append(Patch(color=theme.law, alpha=BAND, lw=0, label=f"{comparison.level:.0%} interval"))
    if len(flops) > 1:
        axes.fill_between(flops, low, high, color=theme.law, alpha=BAND, lw=0)
        axes.plot(flops, gain, color=theme.law, lw=theme.line)
    for item in comparison.gains:
        if item.gain.low is not None and item.gain.high is not None:
            axes.plot([item.flops] * 2, [item.gain.low, item.gain.high], color=theme.law, lw=1.4 * theme.line)
        axes.plot([item.flops], [item.gain.value], "o", ms=theme.marker, color=theme.law)
    axes.axhline(1, color=theme.grey, lw=0.8, label="no gain")
    signs.append(Line2D([], [], color=theme.grey, lw=0.8, label="no gain"))
    if comparison.gate != 1:
        axes.axhline(comparison.gate, color=theme.second, ls="--", lw=theme.line)
        signs.append(Line2D([], [], color=theme.second, ls="--", lw=theme.line, label=f"gate {comparison.gate:g}"))
    axes.set_xscale("log")
    set_title(axes, theme, plain_text(f"A: {comparison.first}\nB: {comparison.second}"))
    style_axes(axes, theme, "C of B (training FLOPs)", "compute-equivalent gain of B over A")
    canvas.add_legend(signs)
    return canvas.figure
