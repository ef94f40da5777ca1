"""How to cite a study, as BibTeX."""

from __future__ import annotations

import re

from flops_fit_core import __version__, numbers
from flops_fit_core.report.page.content import ReportContent


def bibtex(content: ReportContent) -> str:
    """Entries for the study and for flops-fit."""
    key = re.sub(r"[^a-z0-9]+", "-", content.title.lower()).strip("-") or "study"
    years = sorted({result.finished.year for result in content.results})
    year = f"  year = {{{years[-1]}}},\n" if years else ""
    return (
        f"@misc{{{key},\n  title = {{Scaling law of {_latex(content.title)}}},\n{year}"
        f"  note = {{{_latex(_note(content))}}}\n}}\n\n"
        f"@software{{flops-fit,\n  title = {{flops-fit}},\n  author = {{{{flops-fit contributors}}}},\n"
        f"  version = {{{__version__}}}\n}}"
    )


def _note(content: ReportContent) -> str:
    if content.fit is None:
        return f"{len(content.results)} runs, trained with flops-fit {__version__}"
    low, high = (numbers.scientific(flops) for flops in content.fit.flops_range)
    return f"{content.fit.n_runs} runs of {low} to {high} FLOPs, fitted by {content.fit.fitter.name}"


def _latex(text: str) -> str:
    """Text with the special characters of LaTeX escaped."""
    escaped = re.sub(r"[\\{}~^]", " ", text)
    return re.sub(r"([&%$#_])", r"\\\1", " ".join(escaped.split()))
