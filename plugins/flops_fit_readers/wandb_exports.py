"""Reads CSV exports of W&B charts, together with a CSV export of the table of runs in the same folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flops_fit_core import FitError
from flops_fit_core.plugins import LoggedRun, RunReader
from flops_fit_readers.csv_rows import read_rows
from flops_fit_readers.headers import column_names, csv_files, is_chart

_BOUND = re.compile(r"__(?:MIN|MAX|STEP)$")


class WandbExportReader(RunReader):
    """A chart has a column ``RUN - METRIC`` per run; a table of runs has a column ``Name`` and the settings."""

    def read(self, path: Path) -> Iterator[LoggedRun]:
        histories: dict[str, list[dict[str, str]]] = {}
        settings: dict[str, dict[str, Any]] = {}
        for file in csv_files(path):
            if is_chart(file):
                _add_chart(file, histories)
            elif "Name" in column_names(file):
                for row in read_rows(file):
                    settings.setdefault(row["Name"], {}).update(row)
        logged = {name for points in histories.values() for point in points for name in point}
        for name in dict.fromkeys([*histories, *settings]):
            row = settings.get(name, {})
            yield LoggedRun(
                id=name,
                history=histories.get(name, []),
                config={key: cell for key, cell in row.items() if key not in {*logged, "Name", "State"}},
                status=row.get("State", ""),
            )


def _add_chart(file: Path, histories: dict[str, list[dict[str, str]]]) -> None:
    """Add the points of each run: the value of the first column, and the metrics at it."""
    x, *columns = column_names(file)
    series = [(column, *_split_name(column, file.stem)) for column in columns if not _BOUND.search(column)]
    if groups := [run for _, run, _ in series if run.startswith("Group: ")]:
        raise FitError(
            f"{file} has means of groups of runs ({groups[0]!r}): turn grouping off and export it again"
        )
    for row in read_rows(file):
        points: dict[str, dict[str, str]] = {}
        for column, run, metric in series:
            if cell := row.get(column, "").strip():
                points.setdefault(run, {x: row[x]})[metric] = cell
        for run, point in points.items():
            histories.setdefault(run, []).append(point)


def _split_name(column: str, default: str) -> tuple[str, str]:
    """The run and the metric of a column. The chart of a single run names the metric only."""
    run, separator, metric = column.rpartition(" - ")
    return (run, metric) if separator else (default, column)
