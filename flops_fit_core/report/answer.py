"""The answer of a fit in at most 16 lines: the model to train, how sure it is, and the next command.

An :class:`Answer` holds the numbers. ``lines(width)`` is its text: wrapped to a terminal's width, or one line per
statement without a width. Precision falls with the distance from the runs: 3 digits within them, 2 digits up to
:data:`~flops_fit_core.records.FAR` times the largest budget, and 1 digit beyond, where the interval comes before
the number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from textwrap import TextWrapper

from flops_fit_core import numbers
from flops_fit_core.records import FAR, Diagnostic, Interval, LawFit, Optimum, ProfileMinimum
from flops_fit_core.records.html import escape, html_block
from flops_fit_core.report.datatable import on_set, singular

MAX_LINES = 16
"""The most lines of an answer at 80 columns, unless more budgets were requested."""
MAX_WARNINGS = 2
SAME_BUDGET = 1.01
"""Budgets within this factor are equal."""
_ALWAYS = ("columns", "flops-6nd")
"""Codes of notes that are always printed: how a table was read."""
_IMPORTANT = (
    *(
        "synthetic",
        "groups",
        "bits",
        "grid",
        "odd-units",
        "other-results",
        "not-converged",
        "no-interval",
        "disagreement",
    ),
    *("minimum-at-edge", "lack-of-fit", "no-irreducible-loss", "ill-conditioned", "one-ratio", "grid-edge"),
)
"""Codes of warnings, most important first; other codes follow."""


@dataclass(frozen=True)
class Answer:
    """The answer of a fit."""

    title: str
    """The source and its runs: ``text-gpt   23 of 23 runs, 8 min 20 s of training``."""
    fit: LawFit
    optimum: Optimum | None = None
    """The optimum of the headline; None if the law has none."""
    rows: tuple[Optimum, ...] = ()
    """The optima of the table, by budget."""
    isoflop: LawFit | None = None
    """The IsoFLOP law of the same runs, for comparison."""
    diagnostics: tuple[Diagnostic, ...] = ()
    """Warnings and notes, most important first. Warnings come first, and only the first ones are printed."""
    pointers: Mapping[str, str] = field(default_factory=dict)
    """Label -> file or command, printed last: ``report``, ``next``, ``explain``."""
    requested: bool = False
    """Whether the budgets were requested: each is printed with its intervals, after a warning if it is beyond the
    runs."""
    further: tuple[str, ...] = ()
    """Further sentences about the optimum, printed below it."""
    with_new_run: bool = False
    """Whether to print the interval for the loss of one further run."""

    def factor(self, flops: float) -> float:
        """C over the largest C of the runs."""
        return flops / self.fit.flops_range[1]

    def lines(self, width: int | None = None) -> list[str]:
        """The text, with lines of at most ``width`` characters where words allow it."""
        return [line for text in self._statements(width) for line in wrap(text, width)]

    def statements(self) -> list[str]:
        """The title, the headline, the conventions and the exponents, without warnings, table and commands."""
        headline = [] if self.optimum is None else self._headline(self.optimum, f"{self.fit.level:.0%}")
        return [self.title, *headline, f"  {self.conventions()}", *self._law_lines()]

    def _statements(self, width: int | None) -> list[str]:
        level = f"{self.fit.level:.0%}"
        shown, hidden = self.split_diagnostics()
        notes = [f"  {'!' if item.severity == 'warning' else '-'} {shorten(item.message)}" for item in shown]
        lines = [self.title, *(notes if self.requested else [])]
        if self.optimum is not None:
            lines += self._headline(self.optimum, level)
        lines += [f"  {text}" for text in self.further]
        lines += [f"  {self.conventions()}", *self._law_lines(), *([] if self.requested else notes)]
        end = self._pointer_lines(hidden)
        table = self._table(MAX_LINES - len(lines) - len(end))
        if self.requested and width is not None and any(width < len(line) and "!" not in line for line in table):
            table = [line for row in self.rows for line in self._headline(row, level)]
        return lines + table + end

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        """For notebooks: the lines, with their columns aligned."""
        return html_block(self.title, f"<pre>{escape(chr(10).join(self.lines()[1:]))}</pre>")

    # ------------------------------------------------------------------ parts

    def _headline(self, optimum: Optimum, level: str) -> list[str]:
        distance = describe_distance(optimum.flops, self.fit.flops_range)
        if self.factor(optimum.flops) > FAR:
            return [f"  ! {distance}: orders of magnitude only", *self._far_headline(optimum, level)]
        show = Formats.at(self.factor(optimum.flops))
        first = (
            f"  For {numbers.scientific(optimum.flops)} FLOPs train {show.count(optimum.params.value)} parameters "
            f"on {show.count(optimum.tokens.value)} {self.fit.unit} ({show.per_param(optimum)} per parameter)"
        )
        parts = [
            f"{name} {_span(interval, show.count)}"
            for name, interval in (("N", optimum.params), ("D", optimum.tokens))
            if interval.low is not None
        ]
        loss = f"loss {show.loss(optimum.loss.value)}{_in_brackets(optimum.loss, show.loss)}"
        parts += [loss, *self._new_run(optimum, show), level if parts else "no intervals"]
        if not self.requested:
            return [first, "  " + "   ".join([*parts, *([distance] if distance else [])])]
        return [*([f"  ! {distance}"] if distance else []), first, "  " + "   ".join(parts)]

    def _far_headline(self, optimum: Optimum, level: str) -> list[str]:
        """The intervals before the numbers."""
        show = Formats.at(self.factor(optimum.flops))
        params, tokens = (show.interval_first(item, show.count) for item in (optimum.params, optimum.tokens))
        parts = [f"loss {show.interval_first(optimum.loss, show.loss)}", *self._new_run(optimum, show)]
        parts.append(level if optimum.loss.low is not None else "no intervals")
        first = f"  For {numbers.scientific(optimum.flops)} FLOPs train {params} parameters on {tokens} "
        return [f"{first}{self.fit.unit}, {show.per_param(optimum)} per parameter", "  " + "   ".join(parts)]

    def _new_run(self, optimum: Optimum, show: Formats) -> list[str]:
        new_run = optimum.new_run if self.with_new_run else None
        ends = "" if new_run is None else show.ends(new_run, show.loss)
        return [f"a new run {ends}"] if ends else []

    def conventions(self) -> str:
        """The N, the counter, the unit of D, the loss and the level of the intervals."""
        fit = self.fit
        has_intervals = bool(fit.draw_count) or any(item.low is not None for item in fit.exponents.values())
        level = f"{fit.level:.0%} intervals" if has_intervals else "no intervals"
        params, flops = (re.split(r" \(|, ", name)[0] for name in (fit.params_name, fit.flops_name))
        counter = flops.replace("counted by model ", "counted by ")
        if counter.startswith("counted by "):  # a plugin's name is enough: gpt/gpt -> gpt
            plugin = counter.removeprefix("counted by ")
            counter = f"counted by {plugin.rpartition('/')[2]}"
        loss = f"L{on_set(fit.eval_set)} nats/{singular(fit.unit)}"
        return f"N {params}, C {counter}, D {fit.unit}, {loss}, {level}"

    def _law_lines(self) -> list[str]:
        names = {"a": "N_opt ~ C^", "b": "D_opt ~ C^"}
        fit, isoflop = self.fit, self.isoflop
        parts = [
            f"{names[name]}{interval.value:.2f}{_in_brackets(interval, '{:.2f}'.format)}"
            for name, interval in fit.exponents.items()
            if name in names
        ]
        lines = ["  no exponents: the law has no D"] if not fit.exponents else []
        if isoflop is not None and (
            values := [isoflop.exponents[name] for name in "ab" if name in isoflop.exponents]
        ):
            parts.append(f"profiles {', '.join(f'{interval.value:.2f}' for interval in values)}")
        if parts:
            lines.append("  " + "   ".join(parts))
        if not fit.members and fit.law.parameters:
            values_text = "  ".join(f"{name} {value:.4g}" for name, value in fit.law.parameters.items())
            lines.append(f"  law {fit.law.name}   {values_text}")
        return lines

    def split_diagnostics(self) -> tuple[list[Diagnostic], list[Diagnostic]]:
        """The diagnostics to print, at most one warning of each code, and the others."""
        warnings = {item.code: item for item in reversed(self.diagnostics) if item.severity == "warning"}
        first = [item for item in self.diagnostics if warnings.get(item.code) is item]
        shown = first[:MAX_WARNINGS] + [item for item in self.diagnostics if item.code in _ALWAYS]
        return shown, [item for item in self.diagnostics if not any(item is other for other in shown)]

    def _pointer_lines(self, hidden: Sequence[Diagnostic]) -> list[str]:
        warnings = sum(item.severity == "warning" for item in hidden)
        counts = [
            f"{number} {'more ' if word == 'warning' else ''}{word}{'' if number == 1 else 's'}"
            for word, number in (("warning", warnings), ("note", len(hidden) - warnings))
            if number
        ]
        width = max((len(label) for label in self.pointers), default=0)
        more = {"explain": f"   ({', '.join(counts)})"} if counts else {}
        return [f"  {label:<{width}}  {text}{more.get(label, '')}" for label, text in self.pointers.items()]

    def _table(self, room: int) -> list[str]:
        """The heading and a line per budget, at most ``room`` lines; middle budgets are left out first."""
        rows = list(self.rows) if self.requested else thin(self.rows, room - 1)
        if not rows or (self.requested and len(rows) == 1):  # the headline has it
            return []
        near = [row for row in rows if self.factor(row.flops) <= FAR]
        far = [row for row in rows if self.factor(row.flops) > FAR]
        cells = [self._cells(row) for row in near]
        lines = align([self._headings(), *cells]) if near else []
        return lines + [self._far_line(row) for row in far]

    def _headings(self) -> list[str]:
        level = f"{self.fit.level:.0%}" if any(row.params.low is not None for row in self.rows) else ""
        if self.requested:
            return ["", "budget", "N_opt", level, "D_opt", level, "D/N", "loss", level]
        return ["", "budget", "N_opt", "D_opt", "D/N", "loss", *(["profile's N"] if self._minima() else [])]

    def _cells(self, row: Optimum) -> list[str]:
        factor = self.factor(row.flops)
        show = Formats.at(factor)
        before = f"{show_factor(factor)}" if factor > SAME_BUDGET else ""
        params, tokens = show.count(row.params.value), show.count(row.tokens.value)
        cells = [before, numbers.scientific(row.flops), params]
        ratio = show.ratio(row.tokens.value / row.params.value)
        if not self.requested:
            cells += [tokens, ratio, show.loss(row.loss.value)]
            minima = self._minima()
            if minima:
                match = [m.params for m in minima if 1 / SAME_BUDGET < m.budget / row.flops < SAME_BUDGET]
                cells.append(numbers.count(match[0]) if match else "")
            return cells
        params_span, tokens_span = (_span(item, show.count) for item in (row.params, row.tokens))
        return [
            *cells,
            params_span,
            tokens,
            tokens_span,
            ratio,
            show.loss(row.loss.value),
            _span(row.loss, show.loss),
        ]

    def _far_line(self, row: Optimum) -> str:
        show = Formats.at(self.factor(row.flops))
        params, tokens = (show.interval_first(item, show.count) for item in (row.params, row.tokens))
        return (
            f"  ! {describe_distance(row.flops, self.fit.flops_range)}: for {numbers.scientific(row.flops)} FLOPs "
            f"N {params}, D {tokens}, loss {show.interval_first(row.loss, show.loss)}"
        )

    def _minima(self) -> Sequence[ProfileMinimum]:
        source = self.isoflop or self.fit
        return [minimum for minimum in source.minima if not minimum.at_edge]


def order_diagnostics(*groups: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Warnings before notes, the most important first; a message is kept once."""
    unique = {item.message: item for group in groups for item in group}.values()

    def rank(item: Diagnostic) -> tuple[bool, int]:
        place = _IMPORTANT.index(item.code) if item.code in _IMPORTANT else len(_IMPORTANT)
        return item.severity != "warning", place

    return tuple(sorted(unique, key=rank))


def describe_distance(flops: float, flops_range: tuple[float, float]) -> str:
    """``10x beyond your data``; empty within the budgets of the runs."""
    low, high = flops_range
    if flops > high * SAME_BUDGET:
        return f"{show_factor(flops / high)} beyond your data"
    if flops < low / SAME_BUDGET:
        return f"1/{show_factor(low / flops)[:-1]} of your smallest budget"
    return ""


def show_factor(factor: float) -> str:
    """A multiple of a budget in two digits: ``1.2x``, ``10x``, ``2,500x``, ``3e7x``."""
    if 999.5 < factor < 1e6:
        return f"{float(f'{factor:.1e}'):,.0f}x"
    return f"{numbers.ratio(factor, 2).removesuffix('.0')}x"


@dataclass(frozen=True)
class Formats:
    """How numbers are shown at a distance from the runs."""

    count: Callable[[float | None], str]
    ratio: Callable[[float | None], str]
    loss: Callable[[float | None], str]

    @classmethod
    def at(cls, factor: float) -> Formats:
        """The formats at this multiple of the largest budget."""
        digits = 3 if factor <= SAME_BUDGET else 2 if factor <= FAR else 1
        return cls(
            partial(numbers.count, digits=digits),
            partial(numbers.ratio, digits=digits),
            partial(numbers.loss, decimals=digits),
        )

    def per_param(self, optimum: Optimum) -> str:
        """D over N."""
        return self.ratio(optimum.tokens.value / optimum.params.value)

    def interval_first(self, interval: Interval, show: Callable[[float | None], str]) -> str:
        """``300K–9M (about 2M)``; ``about 2M`` without an interval, or if its ends are equal when rounded."""
        value = f"about {show(interval.value)}"
        ends = self.ends(interval, show)
        return f"{ends} ({value})" if ends else value

    @staticmethod
    def ends(interval: Interval, show: Callable[[float | None], str]) -> str:
        """``300K–9M``; empty without an interval, or if its ends are equal when rounded."""
        if interval.low is None or show(interval.low) == show(interval.high):
            return ""
        return _span(interval, show)


def _span(interval: Interval, show: Callable[[float | None], str]) -> str:
    return numbers.span(interval.low, interval.high, show, "–")


def _in_brackets(interval: Interval, show: Callable[[float | None], str]) -> str:
    return "" if interval.low is None else f" ({_span(interval, show)})"


def thin(rows: Sequence[Optimum], room: int) -> list[Optimum]:
    """At most ``room`` rows, evenly spread, with the first and the last."""
    if len(rows) <= room:
        return list(rows)
    if room < 2:
        return []
    places = {round(step * (len(rows) - 1) / (room - 1)) for step in range(room)}
    return [rows[place] for place in sorted(places)]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with right-aligned columns, two characters in."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        ("  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def shorten(text: str, width: int = 74) -> str:
    """The text, or as many of its first clauses as fit into ``width`` characters; cut at a word if none does."""
    if len(text) <= width:
        return text
    ends = [text.find(sign, place) for sign in (": ", "; ", ". ", ", ") for place in range(24, width)]
    if clauses := [end for end in ends if 24 <= end <= width]:
        return text[: max(clauses)]
    return f"{text[: width - 3].rpartition(' ')[0]} ..."


def wrap(text: str, width: int | None) -> list[str]:
    """The text in lines of ``width`` characters; further lines are indented. None: a single line."""
    if width is None or len(text) <= width:
        return [text]
    indent = " " * (len(text) - len(text.lstrip()) + 4)
    wrapper = TextWrapper(
        width,
        subsequent_indent=indent,
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text) or [text]
