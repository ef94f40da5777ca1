"""The report of a study as a self-contained HTML page, for light and dark screens and for print."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flops_fit_core.plugins.utilities import escape_controls
from flops_fit_core.records import Interval, LawFit, Optimum, RunResult, SweepPlan
from flops_fit_core.report import numbers
from flops_fit_core.report.datatable import DataTable, conventions, singular
from flops_fit_core.report.provenance import ProvenanceItem, provenance
from flops_fit_core.report.tables import (
    exponents,
    laws_table,
    minima_table,
    predictions_table,
    runs_table,
    skipped_table,
)


def escape(text: str) -> str:
    """Text as HTML. Control characters are escaped as on a terminal: overrides of the direction hide text."""
    return html.escape(escape_controls(text))


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the page."""

    svg: str
    """The text of an SVG file. Its ids must be unique among the figures of the page."""
    caption: str


@dataclass(frozen=True)
class ReportContent:
    """The content of a page."""

    title: str
    fit: LawFit
    answer: Optimum
    """The prediction at the top of the page."""
    predictions: Sequence[Optimum]
    figures: Sequence[ReportFigure]
    results: Sequence[RunResult] = ()
    plan: SweepPlan | None = None
    synthetic: bool = False


def describe_answer(fit: LawFit, answer: Optimum) -> str:
    """``For C = 1e21 training FLOPs, train N = 2.9B parameters (2.1B to 3.4B) on D = ...``"""
    return (
        f"For C = {numbers.scientific(answer.flops)} training FLOPs, "
        f"train N = {_format_count(answer.params, 'parameters')} on D = {_format_count(answer.tokens, fit.unit)}, "
        f"{numbers.ratio(answer.tokens.value / answer.params.value)} {fit.unit} per parameter. Expected held-out "
        f"loss: {numbers.loss(answer.loss.value)} nats per {singular(fit.unit)}"
        f"{_format_interval(answer.loss, numbers.loss)}."
    )


def _format_count(interval: Interval, unit: str) -> str:
    return f"{numbers.count(interval.value)} {unit}{_format_interval(interval, numbers.count)}"


def _format_interval(interval: Interval, show: Callable[[float], str]) -> str:
    return "" if interval.low is None else f" ({numbers.span(interval.low, interval.high, show)})"


def render_page(content: ReportContent) -> str:
    """The page as HTML text without external resources."""
    fit = content.fit
    parts = [
        f"<h1>{escape(content.title)}</h1>",
        _render_synthetic_banner() if content.synthetic else "",
        _render_answer(fit, content.answer),
        *(_render_figure(figure) for figure in content.figures),
        _render_section("Predictions", _render_table(predictions_table(fit, content.predictions))),
        _render_section(
            "Minima of the profiles", _render_table(minima_table(fit)) if fit.minima else "<p>None.</p>"
        ),
        _render_section("Laws", _render_table(laws_table(fit))) if fit.members else "",
        _render_section("Diagnostics", _render_diagnostics(fit)),
        _render_section("Runs not used by the fit", _render_excluded_runs(content)),
        _render_section("Provenance", _render_provenance(provenance(fit, content.results, content.plan))),
        _render_plan_notes(content.plan),
        _render_runs(content),
    ]
    return _HTML.format(title=escape(content.title), style=_CSS, body="\n".join(part for part in parts if part))


# ---------------------------------------------------------------------------- parts


def _render_synthetic_banner() -> str:
    return (
        '<p class="banner"><strong>Synthetic.</strong> These losses were computed from a formula; '
        "nothing was trained.</p>"
    )


def _render_answer(fit: LawFit, answer: Optimum) -> str:
    if answer.params.low is None:
        intervals = "The fit has no intervals; see the diagnostics."
    else:
        intervals = f"In brackets: {fit.level:.0%} intervals."
    notes = "".join(f"<li>{escape(note)}</li>" for note in answer.notes)
    return (
        f'<p class="answer">{escape(describe_answer(fit, answer))}</p>\n'
        f"<p>{intervals} {escape(conventions(fit.params_name, fit.flops_name, fit.unit, fit.eval_set))}</p>\n"
        + (f"<ul>{notes}</ul>\n" if notes else "")
        + f"<p>{_format_math(exponents(fit))} ({fit.n_runs} runs).</p>"
    )


def _render_figure(figure: ReportFigure) -> str:
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.caption)}"', 1)
    return f"<figure>\n{svg}\n<figcaption>{escape(figure.caption)}</figcaption>\n</figure>"


def _render_section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>"


def _render_table(table: DataTable) -> str:
    sides = ["left" if column.align_left else "right" for column in table.columns]
    heads = "".join(
        f'<th class="{side}">{_format_math(column.heading)}</th>'
        for side, column in zip(sides, table.columns, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(f'<td class="{s}">{escape(c)}</td>' for s, c in zip(sides, cells, strict=True)) + "</tr>"
        for cells in table.cells()
    )
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n'
        f'<p class="about">{escape(table.caption)}</p>'
    )


def _render_diagnostics(fit: LawFit) -> str:
    if not fit.diagnostics:
        return "<p>No diagnostics.</p>"
    ordered = sorted(fit.diagnostics, key=lambda diagnostic: diagnostic.severity == "note")
    return _render_list(
        f'<span class="{diagnostic.severity}">{diagnostic.severity}</span> '
        f"{_format_math(diagnostic.message)} <code>{escape(diagnostic.code)}</code>"
        for diagnostic in ordered
    )


def _render_excluded_runs(content: ReportContent) -> str:
    by_reason: dict[str, list[str]] = {}
    for run, reason in content.fit.excluded.items():
        by_reason.setdefault(reason, []).append(run)
    for result in content.results:
        if result.status != "completed":
            error = f": {result.error.line}" if result.error else ""
            by_reason.setdefault(result.status + error, []).append(result.id)
    if not by_reason:
        return "<p>None: every run was used.</p>"
    return _render_list(
        f"{escape(reason)}: {' '.join(f'<code>{escape(run)}</code>' for run in runs)}"
        for reason, runs in by_reason.items()
    )


def _render_provenance(facts: Iterable[ProvenanceItem]) -> str:
    lines = "".join(f"<dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}</dd>\n" for fact in facts)
    return f"<dl>{lines}</dl>"


def _render_plan_notes(plan: SweepPlan | None) -> str:
    if plan is None or not (plan.notes or plan.skipped):
        return ""
    notes = _render_list(escape(note) for note in plan.notes) if plan.notes else ""
    skipped = f"<h3>Left out of the plan</h3>{_render_table(skipped_table(plan))}" if plan.skipped else ""
    return _render_section("Notes of the plan", notes + skipped)


def _render_runs(content: ReportContent) -> str:
    if not content.results:
        return ""
    table = runs_table(content.results, content.plan)
    return _render_section(table.title, _render_table(table))


def _format_math(text: str) -> str:
    """Escape text, and set ``N_opt ~ C^a`` with subscript and superscript."""
    text = re.sub(r"\b([NDL])_opt\b", r"\1<sub>opt</sub>", escape(text))
    return re.sub(r"\bC\^(-?\w+)", r"C<sup>\1</sup>", text).replace(" ~ ", " ∝ ")


def _render_list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>\n" for item in items) + "</ul>"


# ---------------------------------------------------------------------------- frame

_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

# invert(.93) turns the white of a figure into #121212, the background of the dark page. hue-rotate restores the
# hues, so budgets keep their hue, and their order of lightness is reversed.
_CSS = """
:root { --paper: #fff; --ink: #1f2328; --faint: #57606a; --line: #d8dee4; --mark: #fff3cd; --warn: #9a3412; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
.answer { font-size: 1.35rem; line-height: 1.45; margin: 0 0 .75rem; text-wrap: pretty; }
.banner { background: var(--mark); color: #1f2328; padding: .5rem .9rem; border-radius: .4rem; }
.about, figcaption { color: var(--faint); font-size: .88rem; margin: .4rem 0 0; }
figure { margin: 2rem 0; }
figcaption { max-width: 44rem; margin: .4rem auto 0; text-align: center; }
figure svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
td.left:last-child { white-space: normal; min-width: 9rem; }
sub, sup { line-height: 0; font-size: .75em; }
.right { text-align: right; }
.left { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; font-size: .92rem; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .85em ui-monospace, "DejaVu Sans Mono", monospace; color: var(--faint); overflow-wrap: anywhere; }
.warning { font-weight: 600; color: var(--warn); }
.note { font-weight: 600; color: var(--faint); }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #121212; --ink: #e6e6e6; --faint: #a3a9b0; --line: #33383d; --mark: #e3c565; --warn: #ffb37a; }
  figure svg { filter: invert(.93) hue-rotate(180deg); }
}
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  figure, tr, .banner { break-inside: avoid; }
  h2 { break-after: avoid; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
}
"""
