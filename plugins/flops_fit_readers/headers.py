"""Recognise logs by the start of their files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

JSON_LINES = ("*.jsonl", "*.ndjson")
_START_BYTES = 1_000_000
"""A header, or a first record, is at most this long."""
_CHART_COLUMN = re.compile(r"__(?:MIN|MAX)$")
_STEPS = {"step", "_step", "global_step", "iteration", "iter"}
_SETTINGS = ("config.json", "config.yaml", "hparams.yaml", "hparams.json", "args.json", "params.json")
"""Names of files with the settings of a run."""


def settings_files(folder: Path) -> list[Path]:
    """The files of a run's folder that may hold its settings."""
    return [folder / name for name in _SETTINGS]


def first_line(path: Path) -> str:
    """The first line of a text file, without its end; empty for a line that is too long or no UTF-8."""
    try:
        with path.open("rb") as file:
            line = file.readline(_START_BYTES)
        return line.decode("utf-8-sig").rstrip("\r\n") if len(line) < _START_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return ""


def column_names(path: Path) -> list[str]:
    """The header of a CSV file; empty if it has none."""
    try:
        return [name.strip() for name in next(csv.reader([first_line(path)]), [])]
    except csv.Error:
        return []


def csv_files(path: Path) -> Iterator[Path]:
    """The CSV file ``path``, or the CSV files directly in a folder."""
    files: Sequence[Path] = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    return (file for file in files if file.suffix.lower() == ".csv" and file.is_file())


def is_chart(path: Path) -> bool:
    """Whether a CSV file is an export of a W&B chart: a step, and columns ``RUN - METRIC`` with ``__MIN``."""
    return any(_CHART_COLUMN.search(name) for name in column_names(path)[1:])


def is_lightning(path: Path) -> bool:
    """Whether a CSV file has the columns of Lightning's CSVLogger."""
    return "step" in column_names(path)


def is_json_log(path: Path) -> bool:
    """Whether the first line is a record with logged values: a step, or a summary of a run."""
    record = parse_record(first_line(path))
    if record is None:
        return False
    has_values = any(isinstance(value, int | float) for value in record.values())
    return isinstance(record.get("summary"), dict) or (
        has_values and not _STEPS.isdisjoint(map(str.lower, record))
    )


def parse_record(line: str) -> dict[str, Any] | None:
    """The JSON object in a line; None for any other text."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
