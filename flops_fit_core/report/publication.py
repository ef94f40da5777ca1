"""Tables of a law for papers: Markdown, LaTeX in the style of Hoffmann et al. 2022, Table 3, and BibTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flops_fit_core import numbers
from flops_fit_core.errors import FitError
from flops_fit_core.records import LawFit, Optimum
from flops_fit_core.report.answer import SAME_BUDGET, Answer, show_factor
from flops_fit_core.report.datatable import DataTable, conventions

FARTHEST = 100.0
"""Sizes are listed up to the optimum of this multiple of the largest budget."""
STEPS = 60
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
SOFTWARE = """@software{{flopsfit,
  title   = {{flops-fit: scaling-law experiments}},
  author  = {{{{flops-fit contributors}}}},
  version = {{{version}}},
  license = {{Apache-2.0}},
}}
"""
METHODS = """@article{hoffmann2022training,
  title   = {Training Compute-Optimal Large Language Models},
  author  = {Hoffmann, Jordan and Borgeaud, Sebastian and Mensch, Arthur and others},
  journal = {arXiv preprint arXiv:2203.15556},
  year    = {2022},
}
"""


@dataclass(frozen=True)
class SizeRow:
    """The budget for which a size is optimal."""

    params: float
    optimum: Optimum
    factor: float
    """C over the largest C of the runs."""


def size_rows(fit: LawFit, predict: Callable[[float], Optimum]) -> list[SizeRow]:
    """For sizes 1, 2, 5, 10, ...: the C at which a size is optimal, up to 100 times the largest C.

    Args:
        fit: The law.
        predict: Returns the optimum of a budget. N_opt must grow with C.

    Raises FitError if no such size lies in this range.
    """
    low, high = fit.flops_range[0], FARTHEST * fit.flops_range[1]
    ends = predict(low).params.value, predict(high).params.value
    powers = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    sizes = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    rows = []
    for size in sizes:
        if ends[0] <= size <= ends[1]:
            flops = _solve(predict, size, low, high)
            rows.append(SizeRow(size, predict(flops), flops / fit.flops_range[1]))
    if not rows:
        raise FitError(
            "no size 1, 2, 5, 10, ... is optimal between C = "
            f"{numbers.span(low, high, numbers.scientific, ' and C = ')}"
        )
    return rows


def _solve(predict: Callable[[float], Optimum], size: float, low: float, high: float) -> float:
    """The C at which N_opt is ``size``, to 0.01%, by interpolation between the ends in ln N over ln C."""
    first, last = math.log(low), math.log(high)
    for _ in range(STEPS):
        at_first, at_last = (math.log(predict(math.exp(x)).params.value / size) for x in (first, last))
        middle = first - at_first * (last - first) / (at_last - at_first) if at_last != at_first else first
        error = math.log(predict(math.exp(middle)).params.value / size)
        if abs(error) < 1e-4:
            return math.exp(middle)
        first, last = (middle, last) if error < 0 else (first, middle)
    return math.exp((first + last) / 2)


def latex_table(fit: LawFit, rows: Sequence[SizeRow], name: str) -> str:
    """Size, FLOPs, tokens and loss. Needs the package booktabs."""
    level = f"{fit.level:.0%}".replace("%", r"\%")
    caption = (
        f"Compute-optimal FLOPs and {_latex(fit.unit)} per model size ({_latex(name)}). "
        f"{_latex(conventions(fit.params_name, fit.flops_name, fit.unit, fit.eval_set))} "
        rf"In brackets: {level} intervals. $\times$: multiple of the largest budget of the runs."
    )
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        r"  \begin{tabular}{rrrrr}",
        r"    \toprule",
        rf"    Parameters & FLOPs & $\times$ & {_latex(fit.unit.capitalize())} & Loss \\",
        r"    \midrule",
    ]
    for row in rows:
        factor = show_factor(row.factor)[:-1] if row.factor > SAME_BUDGET else ""
        tokens = _with_ends(row.optimum, "tokens", numbers.count)
        cells = [numbers.count(row.params), _latex_power(row.optimum.flops), factor, tokens]
        cells.append(_with_ends(row.optimum, "loss", numbers.loss))
        lines.append(f"    {' & '.join(cells)} \\\\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""])


def _with_ends(optimum: Optimum, name: str, show: Callable[[float], str]) -> str:
    interval = getattr(optimum, name)
    ends = "" if interval.low is None else f" ({numbers.span(interval.low, interval.high, show, '--')})"
    return f"{show(interval.value)}{ends}"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _latex_power(value: float) -> str:
    mantissa, _, exponent = numbers.scientific(value).partition("e")
    return rf"${mantissa} \times 10^{{{exponent}}}$"


def markdown(answer: Answer, table: DataTable) -> str:
    """The answer's sentences, and a table with all intervals."""
    cells = [[column.heading for column in table.columns], ["---:"] * len(table.columns), *table.cells()]
    rows = ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in cells]
    sentences = [f"* {_markdown(line.strip())}" for line in answer.statements() if line.startswith("  ")]
    return "\n".join([f"# {_markdown(answer.title)}", "", *sentences, "", *rows, "", _markdown(table.caption), ""])


def _markdown(text: str) -> str:
    return re.sub(r"([|*_<>`\\])", r"\\\1", text) if not text.startswith("---") else text


def bibtex(version: str) -> str:
    """Entries for flops-fit and for the method of IsoFLOP profiles."""
    return SOFTWARE.format(version=version) + "\n" + METHODS
