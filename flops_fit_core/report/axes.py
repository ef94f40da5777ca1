"""Logarithmic axes, readable over ranges from a tenth of a decade to twelve decades; the style of all figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

from flops_fit_core import numbers
from flops_fit_core.plugins.utilities import escape_controls
from flops_fit_core.records import LawFit
from flops_fit_core.report.theme import Theme, read_style

_MANTISSAS: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
)


def log_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Three to ``most`` round numbers from ``low`` to ``high``, at roughly equal distances."""
    min_spacing = 0.8 * math.log10(high / low) / most
    best: list[float] = []
    for mantissas in _MANTISSAS:
        ticks = _ticks_with(mantissas, low, high)
        if mantissas == (1,):
            ticks = ticks[:: max(1, math.ceil(len(ticks) / most))]
        spacing = min((math.log10(b / a) for a, b in pairwise(ticks)), default=0.0)
        if max(2, len(best)) < len(ticks) <= most and spacing >= min_spacing:
            best = ticks
    return best or _linear_ticks(low, high)


def _ticks_with(mantissas: Sequence[float], low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas]
    return [tick for tick in ticks if low <= tick <= high]


def _linear_ticks(low: float, high: float) -> list[float]:
    """Ticks for ranges below about a third of a decade, where a log axis is nearly linear."""
    if high <= low * (1 + 1e-9):
        return [low]
    third = (high - low) / 3 * (1 + 1e-9)
    step = 10.0 ** math.floor(math.log10(third))
    step *= max(nice for nice in (1, 1.5, 2, 2.5, 4, 5, 7.5) if nice * step <= third)
    first = math.ceil(low / step * (1 - 1e-12))
    return [float(f"{k * step:.10g}") for k in range(first, math.floor(high / step * (1 + 1e-12)) + 1)]


def _tick_count(value: float) -> str:
    """``20M``, ``1.5B``; larger values as a power of ten."""
    if not 1 <= value < 999.5e12:
        return format_power(value)
    thousands = min(4, math.floor(math.log10(value) / 3 + 1e-12))
    return f"{value / 1000.0**thousands:.6g}" + ("", "K", "M", "B", "T")[thousands]


def format_power(value: float) -> str:
    """FLOPs as ``10^18`` or ``3 x 10^18``, in mathtext."""
    mantissa, exponent = numbers.scientific(value).split("e")
    return f"$10^{{{exponent}}}$" if mantissa == "1" else rf"${mantissa}{{\times}}10^{{{exponent}}}$"


_SHOW: dict[str, Callable[[float], str]] = {
    "count": _tick_count,
    "power": format_power,
    "ratio": lambda value: f"{value:.6g}",
}


def set_log_axis(
    axes: Axes,
    which: Literal["x", "y"],
    low: float,
    high: float,
    show: Literal["count", "power", "ratio"],
    most: int = 8,
) -> None:
    """Make an axis logarithmic from ``low`` to ``high``, with labelled round ticks and unlabelled minor ticks."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    ticks = log_ticks(low, high, most)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([_SHOW[show](tick) for tick in ticks]))
    between = range(1, 10) if high / low < 3000 else (1,)
    axis.set_minor_locator(FixedLocator(_ticks_with(between, low, high)))
    axis.set_minor_formatter(NullFormatter())


def add_margin(values: Sequence[float], factor: float = 0.06) -> tuple[float, float]:
    """Limits of a log axis with a margin at both ends, as a share of the range of values."""
    low, high = min(values), max(values)
    margin = max((high / low) ** factor, 1.02)
    return low / margin, high * margin


def plain_text(text: str) -> str:
    """Text for a figure without control characters, and without formulas: matplotlib takes ``$...$`` for one."""
    return escape_controls(text).replace("$", r"\$")


def plain_names(fit: LawFit) -> LawFit:
    """The law, with names that a figure can show."""
    names = {name: plain_text(getattr(fit, name)) for name in ("params_name", "flops_name", "unit")}
    eval_set = None if fit.eval_set is None else plain_text(fit.eval_set)
    return fit.model_copy(update={**names, "eval_set": eval_set})


def style_axes(
    axes: Axes, theme: Theme, x_label: str, y_label: str, *, wrap: int = 56, y_wrap: int | None = None
) -> None:
    """Set labels (wrapped at ``wrap`` and ``y_wrap`` characters) and a faint grid, and remove the box."""
    axes.set_xlabel(_wrap_lines(x_label, wrap), color=theme.ink, fontsize=theme.size("label"))
    axes.set_ylabel(_wrap_lines(y_label, y_wrap or wrap), color=theme.ink, fontsize=theme.size("label"))
    color, width = read_style("grid.color", theme.faint), read_style("grid.linewidth", 0.6)
    axes.grid(visible=True, which="major", color=color, linewidth=width)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.ink)
    axes.tick_params(which="both", color=theme.ink, labelcolor=theme.ink, labelsize=theme.size("tick"))


def set_title(axes: Axes, theme: Theme, text: str, *, wrap: int = 80) -> None:
    """A short text above the axes, at the left: the conventions of the numbers."""
    axes.set_title(_wrap_lines(text, wrap), fontsize=theme.size("note"), color=theme.ink, loc="left")


def visible_length(text: str) -> int:
    """Characters of a text without the marks of mathtext."""
    return len(re.sub(r"\\[a-z]+|[${}_^\\]", "", text))


def _wrap_lines(text: str, width: int) -> str:
    """Lines of at most ``width`` characters, broken before a bracket if both parts fit."""
    lines: list[str] = []
    for line in text.split("\n"):
        head, bracket, tail = line.partition(" (")
        if visible_length(line) <= width:
            lines.append(line)
        elif bracket and max(visible_length(head), visible_length(tail) + 1) <= width:
            lines += [head, f"({tail}"]
        else:
            lines += _wrap_words(line, width)
    return "\n".join(lines)


def _wrap_words(line: str, width: int) -> list[str]:
    """Greedy lines of words; a formula, with its spaces, is part of a single word."""
    lines = [""]
    for word in re.findall(r"(?:\\\$|\$[^$]*\$|\S)+", line):
        joined = f"{lines[-1]} {word}".strip()
        if visible_length(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def mark_synthetic(axes: Axes, theme: Theme) -> None:
    """Write "synthetic" across a plot: nothing was trained."""
    style: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center", "rotation": 28}
    size = 5.5 * theme.text_points
    axes.text(0.5, 0.5, "synthetic", fontsize=size, color=theme.ink, alpha=0.1, zorder=0.5, **style)
