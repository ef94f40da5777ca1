"""The rows of the table of runs, and the errors of runs that failed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flops_fit_core import numbers
from flops_fit_core.records import RunError, RunResult
from flops_fit_core.report.page.content import ReportContent
from flops_fit_core.report.tables import runs_table

SHORT_ERROR = 70
"""Characters of an error in the table of runs."""


@dataclass(frozen=True)
class Cell:
    """A cell of the table of runs."""

    text: str
    sort: float | str
    """The value by which the column is sorted; an empty text sorts last."""


@dataclass(frozen=True)
class RunRow:
    """A row of the table of runs."""

    id: str
    state: str
    cells: list[Cell]
    error: int | None = None
    """Number of the group of errors in :class:`ErrorGroup`, from 1."""
    error_text: str = ""


@dataclass
class ErrorGroup:
    """Runs that failed with the same message, apart from numbers in it."""

    line: str
    runs: list[str] = field(default_factory=list)
    messages: dict[str, list[str]] = field(default_factory=dict)
    """Each different message -> the runs with it."""
    tracebacks: dict[str, list[str]] = field(default_factory=dict)
    """Each different traceback -> the runs with it."""


@dataclass(frozen=True)
class RunTable:
    """The table of runs."""

    headings: list[tuple[str, bool]]
    """Heading of each column, and whether it is text."""
    rows: list[RunRow]
    errors: list[ErrorGroup]
    states: dict[str, int]
    """State -> number of runs."""
    records: list[dict[str, Any]]
    """A record per run, for the figures and the CSV file."""
    fields: list[str]


def build_run_table(content: ReportContent) -> RunTable | None:
    """The runs of a study, or of a table; None without any."""
    if content.results or content.plan is not None:
        return _study_runs(content)
    return _table_runs(content) if content.observations else None


def _study_runs(content: ReportContent) -> RunTable:
    table = runs_table(content.results, content.plan)
    groups, group_of_run = group_errors(content.results)
    excluded = content.fit.excluded if content.fit is not None else {}
    shown = [column for column in table.columns if column.heading not in ("id", "status", "error")]
    by_heading = {heading: name for name, heading in _SORT_FIELDS.items()}
    rows, states = [], dict[str, int]()
    for values in table.rows:
        state = "not used" if values["id"] in excluded and values["status"] == "completed" else values["status"]
        states[state] = states.get(state, 0) + 1
        cells = [Cell(column.show(values), _sort_value(values, by_heading, column.heading)) for column in shown]
        number = group_of_run.get(values["id"])
        text = groups[number - 1].line if number else excluded.get(values["id"], "")
        rows.append(RunRow(values["id"], state, cells, number, _shorten(text)))
    headings = [(column.heading, column.align_left) for column in shown]
    records = [{name: row[name] for name in table.fields if name != "error"} for row in table.rows]
    fields = [name for name in table.fields if name != "error"]
    return RunTable(headings, rows, groups, states, records, fields)


_SORT_FIELDS = {
    "budget": "C",
    "size": "size",
    "params": "N",
    "tokens": "D",
    "loss": "loss",
    "seed": "seed",
    "seconds": "time",
    "bits_per_byte": "bits/byte",
}


def _sort_value(values: Any, by_heading: dict[str, str], heading: str) -> float | str:
    name = by_heading.get(heading, heading)
    value = values.get(name, values.get(f"loss_{heading.removeprefix('loss on ')}"))
    return "" if value is None else value if isinstance(value, (int, float)) else str(value)


def _table_runs(content: ReportContent) -> RunTable:
    """The rows of a table, with the reasons why the fit did not use some."""
    excluded = content.fit.excluded if content.fit is not None else {}
    rows, states, records = [], dict[str, int](), []
    for run in content.observations:
        state = "not used" if run.id in excluded else "used"
        states[state] = states.get(state, 0) + 1
        cells = [
            Cell(numbers.scientific(run.flops), run.flops),
            Cell(numbers.count(run.params), run.params),
            Cell(numbers.count(run.tokens), run.tokens),
            Cell(numbers.loss(run.loss), run.loss),
        ]
        rows.append(RunRow(run.id, state, cells, None, _shorten(excluded.get(run.id, ""))))
        records.append(
            {"id": run.id, "status": state, "params": run.params, "tokens": run.tokens, "flops": run.flops}
            | {"loss": run.loss, "budget": run.budget}
        )
    headings = [("C", False), ("N", False), ("D", False), ("loss", False)]
    fields = ["id", "status", "params", "tokens", "flops", "loss", "budget"]
    return RunTable(headings, rows, [], states, records, fields)


def group_errors(results: Sequence[RunResult]) -> tuple[list[ErrorGroup], dict[str, int]]:
    """Errors by message, the most frequent first, and the number of each run's group, from 1.

    Messages that differ in numbers only form one group: an out-of-memory error names sizes and process ids. Equal
    messages and equal tracebacks are stored once.
    """
    groups: dict[tuple[str, str], ErrorGroup] = {}
    for result in results:
        if (error := result.error) is not None:
            group = groups.setdefault((error.type, _without_numbers(error)), ErrorGroup(error.line))
            group.runs.append(result.id)
            group.messages.setdefault(f"{error.type}: {error.message}", []).append(result.id)
            if error.traceback:
                group.tracebacks.setdefault(error.traceback, []).append(result.id)
    ordered = sorted(groups.values(), key=lambda group: -len(group.runs))
    return ordered, {run: number for number, group in enumerate(ordered, 1) for run in group.runs}


def _without_numbers(error: RunError) -> str:
    return re.sub(r"\d+(\.\d+)?", "0", error.message)


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT_ERROR else f"{line[: SHORT_ERROR - 1]}…"
