"""Reads the settings files of training runs: JSON and YAML, without executing anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flops_fit_core.config.yaml_text import parse_settings
from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.json_records import flatten_cells
from flops_fit_core.plugins import limits
from flops_fit_core.plugins.protocols import LoggedRun
from flops_fit_core.plugins.run_files import read_run_file

FACTS_FILE = "flops_fit.json"
"""A file in the folder of a run, with facts that its log lacks."""


def run_settings(run: LoggedRun) -> tuple[dict[str, Any], list[str]]:
    """Columns ``config.NAME`` from the settings, columns from ``flops_fit.json``, and a sentence per unread file.

    Raises FitError if ``flops_fit.json`` cannot be read: the user wrote it for this fit.
    """
    cells: dict[str, Any] = {}
    problems = []
    for path in run.config_files:
        if path.is_file():
            try:
                cells |= _scalars(read_settings(path), "config.")
            except (FitError, ValueError) as error:
                problems.append(f"{path} is not read: {error}")
    cells |= _scalars(run.config, "config.")
    if run.folder is not None and (path := run.folder / FACTS_FILE).is_file():
        try:
            cells |= _scalars(read_settings(path), "")
        except ValueError as error:
            raise FitError(f"{path}: {error}") from None
    return cells, problems


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file. Tags of YAML such as ``!!python/object`` are ignored.

    Raises FitError or ValueError for a file that is too large, or holds no mapping.
    """
    text = read_run_file(path, limits.EXPERIMENT_BYTES).decode("utf-8", errors="replace")
    try:
        value = json.loads(text) if path.suffix.lower() == ".json" else parse_settings(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("it holds no mapping of names to values")  # noqa: TRY004  an error of the file
    return value


def _scalars(settings: Any, prefix: str) -> dict[str, Any]:
    try:
        return {name: value for name, value in _flat(settings, prefix) if isinstance(value, str | int | float)}
    except RecursionError:
        raise FitError("the settings of a run are nested too deeply") from None


def _flat(settings: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    return iter(flatten_cells({str(key): value for key, value in settings.items()}, prefix))
