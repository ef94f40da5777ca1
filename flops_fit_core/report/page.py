"""One HTML page that tells what came of a study: self-contained, for screens light and dark, and for paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from flops_fit_core.records import Interval, LawFit, Optimum, RunResult, SweepPlan
from flops_fit_core.report import numbers
from flops_fit_core.report.datatable import DataTable, conventions, singular
from flops_fit_core.report.provenance import Fact, provenance
from flops_fit_core.report.tables import exponents, minima_table, predictions_table, runs_table, skipped_table


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    svg: str
    """The text of an SVG file; its ids must differ from those of the page's other figures."""
    caption: str


@dataclass(frozen=True)
class Story:
    """Everything a page tells."""

    title: str
    fit: LawFit
    answer: Optimum
    """The prediction that the page begins with."""
    predictions: Sequence[Optimum]
    pictures: Sequence[Picture]
    results: Sequence[RunResult] = ()
    plan: SweepPlan | None = None
    synthetic: bool = False


def answer_in_words(fit: LawFit, answer: Optimum) -> str:
    """``For C = 1e21 training FLOPs, train N = 2.9B parameters (2.1B to 3.4B) on D = ...``"""
    return (
        f"For C = {numbers.scientific(answer.flops)} training FLOPs, "
        f"train N = {_count(answer.params, 'parameters')} on D = {_count(answer.tokens, fit.unit)}, "
        f"{numbers.ratio(answer.tokens.value / answer.params.value)} {fit.unit} per parameter. Expected held-out "
        f"loss: {numbers.loss(answer.loss.value)} nats per {singular(fit.unit)}{_ends(answer.loss, numbers.loss)}."
    )


def _count(interval: Interval, unit: str) -> str:
    return f"{numbers.count(interval.value)} {unit}{_ends(interval, numbers.count)}"


def _ends(interval: Interval, show: Callable[[float], str]) -> str:
    return "" if interval.low is None else f" ({numbers.span(interval.low, interval.high, show)})"


def render(story: Story) -> str:
    """The page, as HTML text that asks for nothing from anywhere."""
    fit = story.fit
    parts = [
        f"<h1>{escape(story.title)}</h1>",
        _synthetic_banner() if story.synthetic else "",
        _answer(fit, story.answer),
        *(_figure(picture) for picture in story.pictures),
        _section("Predictions", _table(predictions_table(fit, story.predictions))),
        _section("Minima of the profiles", _table(minima_table(fit)) if fit.minima else "<p>None.</p>"),
        _section("Diagnostics", _diagnostics(fit)),
        _section("Runs that the fit did not use", _left_out(story)),
        _section("How these numbers came about", _facts(provenance(fit, story.results, story.plan))),
        _plan_notes(story.plan),
        _runs(story),
    ]
    return _PAGE.format(title=escape(story.title), style=_STYLE, body="\n".join(part for part in parts if part))


# ---------------------------------------------------------------------------- parts


def _synthetic_banner() -> str:
    return (
        '<p class="banner"><strong>Synthetic.</strong> These losses were computed from a formula; '
        "nothing was trained.</p>"
    )


def _answer(fit: LawFit, answer: Optimum) -> str:
    if answer.params.low is None:
        sure = "The fit has no intervals; the diagnostics say why."
    else:
        sure = f"In brackets: {fit.level:.0%} intervals."
    notes = "".join(f"<li>{escape(note)}</li>" for note in answer.notes)
    return (
        f'<p class="answer">{escape(answer_in_words(fit, answer))}</p>\n'
        f"<p>{sure} {escape(conventions(fit.params_name, fit.flops_name, fit.unit, fit.heldout))}</p>\n"
        + (f"<ul>{notes}</ul>\n" if notes else "")
        + f"<p>{_maths(exponents(fit))} ({fit.n_runs} runs).</p>"
    )


def _figure(picture: Picture) -> str:
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(picture.caption)}"', 1)
    return f"<figure>\n{svg}\n<figcaption>{escape(picture.caption)}</figcaption>\n</figure>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>"


def _table(table: DataTable) -> str:
    sides = ["left" if column.left else "right" for column in table.columns]
    heads = "".join(
        f'<th class="{side}">{_maths(column.heading)}</th>'
        for side, column in zip(sides, table.columns, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(f'<td class="{s}">{escape(c)}</td>' for s, c in zip(sides, cells, strict=True)) + "</tr>"
        for cells in table.cells()
    )
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n'
        f'<p class="about">{escape(table.about)}</p>'
    )


def _diagnostics(fit: LawFit) -> str:
    if not fit.diagnostics:
        return "<p>Nothing to remark.</p>"
    ordered = sorted(fit.diagnostics, key=lambda one: one.severity == "note")
    return _list(
        f'<span class="{one.severity}">{one.severity}</span> {_maths(one.message)} <code>{escape(one.code)}</code>'
        for one in ordered
    )


def _left_out(story: Story) -> str:
    by_reason: dict[str, list[str]] = {}
    for run, reason in story.fit.excluded.items():
        by_reason.setdefault(reason, []).append(run)
    for result in story.results:
        if result.status != "completed":
            error = f": {result.error.line}" if result.error else ""
            by_reason.setdefault(result.status + error, []).append(result.id)
    if not by_reason:
        return "<p>None: every run was used.</p>"
    return _list(
        f"{escape(reason)}: {' '.join(f'<code>{escape(run)}</code>' for run in runs)}"
        for reason, runs in by_reason.items()
    )


def _facts(facts: Iterable[Fact]) -> str:
    lines = "".join(f"<dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}</dd>\n" for fact in facts)
    return f"<dl>{lines}</dl>"


def _plan_notes(plan: SweepPlan | None) -> str:
    if plan is None or not (plan.notes or plan.skipped):
        return ""
    notes = _list(escape(note) for note in plan.notes) if plan.notes else ""
    skipped = f"<h3>Left out of the plan</h3>{_table(skipped_table(plan))}" if plan.skipped else ""
    return _section("Notes of the plan", notes + skipped)


def _runs(story: Story) -> str:
    if not story.results:
        return ""
    table = runs_table(story.results, story.plan)
    return _section(table.title, _table(table))


def _maths(text: str) -> str:
    """``N_opt ~ C^a`` with a lowered index and a raised exponent, escaped."""
    text = re.sub(r"\b([NDL])_opt\b", r"\1<sub>opt</sub>", escape(text))
    return re.sub(r"\bC\^(-?\w+)", r"C<sup>\1</sup>", text).replace(" ~ ", " ∝ ")


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>\n" for item in items) + "</ul>"


# ---------------------------------------------------------------------------- frame

_PAGE = """<!doctype html>
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

# invert(.93) turns a figure's white into #121212, the page's own colour in the dark, and hue-rotate turns the
# colours back, so that budgets keep their hue and their order of lightness is the mirror image.
_STYLE = """
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
