"""Reads JSON lines of a run's logged values (OLMo, Marin, Levanter and others): one run per file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flops_fit_core import FitError
from flops_fit_core.plugins import LoggedRun, RunReader, find_run_files, read_run_file
from flops_fit_readers.headers import JSON_LINES, is_json_log, parse_record, settings_files

_NAMES = ("run_id", "run_path", "run_name", "name")


class JsonLinesReader(RunReader):
    """A line holds the values of one step, or ``config`` and ``summary`` of a complete run, as in Marin."""

    def read(self, path: Path) -> Iterator[LoggedRun]:
        files = [file for file in find_run_files(path, *JSON_LINES) if is_json_log(file)]
        folders = [file.parent for file in files]
        for file in files:
            is_alone = folders.count(file.parent) == 1 and file.parent != path
            name = (file.parent if is_alone else file.with_suffix("")).relative_to(path).as_posix()
            records = list(_records(file))
            if isinstance(records[0].get("summary"), dict):
                yield from _summarised_runs(name, records)
            else:
                config = settings_files(file.parent) if is_alone else []
                folder = file.parent if is_alone else None
                yield LoggedRun(id=name, history=records, config_files=config, folder=folder)


def _summarised_runs(name: str, records: list[dict[str, Any]]) -> Iterator[LoggedRun]:
    """A run per line, with its final values."""
    for number, record in enumerate(records, 1):
        run_name = next((str(record[key]) for key in _NAMES if record.get(key)), name)
        summary, config = (record.get(key) for key in ("summary", "config"))
        yield LoggedRun(
            id=run_name if len(records) == 1 and run_name != name else f"{name} line {number}: {run_name}",
            history=[summary] if isinstance(summary, dict) else [],
            config=config if isinstance(config, dict) else {},
            status=str(record.get("state") or ""),
        )


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file. A last line that was not written completely is left out."""
    lines = [
        line for line in read_run_file(file).decode("utf-8-sig", errors="replace").splitlines() if line.strip()
    ]
    for number, line in enumerate(lines, 1):
        record = parse_record(line)
        if record is not None:
            yield record
        elif number < len(lines):
            raise FitError(f"{file}: record {number} is not a JSON object")
