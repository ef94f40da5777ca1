"""Renders the page: one HTML text without external resources."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from flops_fit_core import __version__, numbers
from flops_fit_core.plugins.utilities import escape_controls
from flops_fit_core.records import Diagnostic, LawFit
from flops_fit_core.report.datatable import DataTable, conventions
from flops_fit_core.report.page import assets
from flops_fit_core.report.page.answer import tiles
from flops_fit_core.report.page.citation import bibtex
from flops_fit_core.report.page.content import ReportContent
from flops_fit_core.report.page.figure_data import figure_data, task_data
from flops_fit_core.report.page.law_tables import SIX_ND, exponents_table, parameters_table
from flops_fit_core.report.page.progress import sweep_progress
from flops_fit_core.report.page.run_rows import RunTable, build_run_table
from flops_fit_core.report.page.tasks import TaskReport
from flops_fit_core.report.page.trust import list_checks, verdict
from flops_fit_core.report.provenance import provenance
from flops_fit_core.report.tables import exponents, laws_table, minima_table, predictions_table
from flops_fit_core.report.task_tables import accuracy_table, describe_task_fit


def render_page(content: ReportContent) -> str:
    """The page as HTML text. Equal content gives equal text."""
    table = build_run_table(content)
    checks = list_checks(content)
    template = page_environment().get_template("page.html.jinja")
    return template.render(
        content=content,
        fit=content.fit,
        answer=content.answer,
        context=content.context,
        progress=sweep_progress(content.plan, content.results),
        checks=checks,
        verdict=verdict(checks),
        tables=_tables(content),
        diagnostics=_diagnostics(content.fit),
        unused=_unused_runs(content),
        provenance=provenance(content.fit, content.results, content.plan),
        tasks=[_task(report) for report in content.context.tasks],
        runs=table,
        citation=bibtex(content),
        data=_page_data(content, table),
        version=__version__,
    )


@cache
def page_environment(*folders: Path, files: assets.PageFiles = assets.REPORT) -> Environment:
    """Templates that escape every value as HTML, and control characters as on a terminal.

    ``folders`` have further templates. ``files`` are the style sheets and scripts of the page.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, assets.FOLDER / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escape_unsafe,
    )
    environment.globals.update(
        numbers=numbers,
        # Files of this package are markup; everything else is escaped.
        style=Markup(assets.style(files)),  # noqa: S704
        scripts=[Markup(script) for script in assets.scripts(files)],  # noqa: S704
        security_policy=assets.security_policy(files),
        tiles=tiles,
        exponents=exponents,
        conventions=conventions,
    )
    environment.filters["math"] = format_math
    environment.filters["script_json"] = lambda value: Markup(assets.script_json(value))  # noqa: S704
    return environment


def _escape_unsafe(value: Any) -> Any:
    return escape_controls(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def format_math(text: str) -> Markup:
    """Escape text, and set ``N_opt ~ C^a`` with subscript and superscript."""
    escaped = str(escape(escape_controls(text)))
    escaped = re.sub(r"\b([NDL])_opt\b", r"\1<sub>opt</sub>", escaped)
    return Markup(re.sub(r"\bC\^(-?\w+)", r"C<sup>\1</sup>", escaped).replace(" ~ ", " ∝ "))  # noqa: S704


def _tables(content: ReportContent) -> dict[str, DataTable | None]:
    """The tables of a law by name; None without one."""
    fit, isoflop = content.fit, content.context.isoflop
    if fit is None:
        return dict.fromkeys(("predictions", "minima", "laws", "exponents", "parameters"))
    minima = fit if fit.minima else isoflop if isoflop is not None and isoflop.minima else None
    return {
        "predictions": predictions_table(fit, content.predictions),
        "minima": minima_table(minima) if minima is not None else None,
        "laws": laws_table(fit) if fit.members else None,
        "exponents": exponents_table(fit, None if fit.flops_name == SIX_ND else content.context.six_nd),
        "parameters": parameters_table(fit),
    }


def _diagnostics(fit: LawFit | None) -> list[Diagnostic]:
    """Warnings before notes."""
    return sorted(fit.diagnostics if fit else (), key=lambda diagnostic: diagnostic.severity == "note")


def _unused_runs(content: ReportContent) -> dict[str, list[str]]:
    """Reason -> runs that the fit did not use for it. Failed runs are listed with their errors."""
    by_reason: dict[str, list[str]] = {}
    for run, reason in (content.fit.excluded if content.fit is not None else {}).items():
        by_reason.setdefault(reason, []).append(run)
    for result in content.results:
        if result.status == "diverged":
            by_reason.setdefault("diverged", []).append(result.id)
    return by_reason


def _page_data(content: ReportContent, table: RunTable | None) -> dict[str, Any]:
    """What the page's scripts read."""
    fit, grid = content.fit, content.grid
    return {
        "title": content.title,
        "unit": content.unit,
        "paramsName": content.params_name,
        "flopsName": content.flops_name,
        "source": content.context.source,
        "peaks": dict(content.context.peaks),
        "level": None if fit is None else fit.level,
        "flopsRange": None if fit is None else list(fit.flops_range),
        "paramsRange": None if fit is None or fit.params_range is None else list(fit.params_range),
        "answer": None if content.answer is None else content.answer.flops,
        "grid": None
        if grid is None
        else {"flops": grid.flops, "ratios": grid.serving_ratios} | _rounded(grid.tables),
        "figures": figure_data(content),
        "tasks": [task_data(report) for report in content.context.tasks],
        "runs": [] if table is None else table.records,
        "fields": [] if table is None else table.fields,
    }


def _task(report: TaskReport) -> dict[str, Any]:
    """A task for the template."""
    return {
        "report": report,
        "table": accuracy_table(report.fit, report.forecasts),
        "warnings": [item for item in report.fit.diagnostics if item.severity == "warning"],
        "laws": list(describe_task_fit(report.fit)),
    }


def _rounded(tables: dict[str, list[list[float | None]]]) -> dict[str, list[list[float | None]]]:
    """Seven significant digits: the page interpolates to 0.5%."""
    return {
        name: [[None if value is None else float(f"{value:.7g}") for value in row] for row in rows]
        for name, rows in tables.items()
    }
