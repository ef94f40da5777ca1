"""Tables in JSON: lists of records, columns, records by name, and exports of W&B."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError

_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")


def split_lines(text: str) -> list[str]:
    """The lines with their ends: LF, CRLF or CR. ``str.splitlines`` also splits cells, at U+2028 for instance."""
    return _LINE.findall(text)


def json_line_records(path: Path, text: str) -> list[Any]:
    """One record per line."""
    records = []
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            try:
                records.append(_load(line))
            except ValueError as error:
                raise FitError(f"{path}, line {number}: not JSON: {error}") from None
    return records


def read_json_records(path: Path, text: str) -> list[Any]:
    """The records of a file in any supported layout. Raises FitError if it holds no table."""
    try:
        value = _load(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return json_line_records(path, text)
        raise FitError(f"{path}: not JSON: {error}") from None
    except ValueError as error:
        raise FitError(f"{path}: {error}") from None
    records = json_records(value)
    if records is None:
        raise FitError(f'{path} holds no table: write a list of records such as {{"params": 1e8, "tokens": 2e9}}')
    return records


def _load(text: str) -> Any:
    """As ``json.loads``, which would silently use the last of equal keys. Raises ValueError."""

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"a record has the key {key!r} twice")
        return values

    return json.loads(text, object_pairs_hook=record)


def json_records(value: Any) -> list[Any] | None:
    """Records from a list, a list under a key such as ``runs``, columns in a pandas layout, or objects by run
    name.

    Returns None for any other layout.
    """
    if isinstance(value, list):
        return _records_under_header(value)
    if not isinstance(value, dict) or not value:
        return None
    if {"columns", "data"} <= set(value):
        return _name_cells(value["columns"], value["data"])
    for key in ("data", "rows", "runs", "results", "records"):
        if isinstance(value.get(key), list):
            return _records_under_header(value[key])
    values = list(value.values())
    if all(isinstance(column, list) for column in values):
        return [dict(zip(value, cells, strict=True)) for cells in zip_longest(*values)]
    if all(isinstance(column, dict) and column for column in values):
        return _records_from_objects(value)
    lists = [rows for rows in values if _is_list_of_records(rows)]
    return list(lists[0]) if len(lists) == 1 and _names_a_loss(lists[0][0]) else None


def _records_from_objects(value: Mapping[str, Mapping[str, Any]]) -> list[Any] | None:
    """Records from objects by row, by column, or by run name."""
    if all(key.isdigit() for key in value):
        return list(value.values())
    keys = list(dict.fromkeys(key for column in value.values() for key in column))
    if all(key.isdigit() for key in keys):
        return [{name: column.get(key) for name, column in value.items()} for key in keys]
    if all(map(_names_a_loss, value.values())) and not _names_a_loss(value):
        return [{"run": name, **row} for name, row in value.items()]
    return None


def _records_under_header(rows: Sequence[Any]) -> list[Any] | None:
    """Records from lists below a list of names; returns other lists unchanged."""
    if (
        len(rows) > 1
        and all(isinstance(row, list) for row in rows)
        and all(isinstance(name, str) for name in rows[0])
    ):
        return _name_cells(rows[0], rows[1:])
    return list(rows)


def _name_cells(names: Any, rows: Any) -> list[Any] | None:
    """Records from lists of cells. None if names repeat, or cells have no name: values would be lost."""
    if not isinstance(names, list) or not isinstance(rows, list):
        return None
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts) or not all(isinstance(row, list) and len(row) <= len(texts) for row in rows):
        return None
    return [dict(zip(texts, row, strict=False)) for row in rows]


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _names_a_loss(record: Mapping[str, Any]) -> bool:
    return any(re.search(r"(?:^|[^a-z])(?:loss|nll|bpb)(?:$|[^a-z])", str(key).lower()) for key in record)


def flatten_cells(record: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Cells of nested objects under ``outer.inner``; W&B stores x as ``{"value": x}``."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and set(value) <= {"value", "desc"} and "value" in value:
            value = value["value"]
        if isinstance(value, dict):
            yield from flatten_cells(value, f"{name}.")
        else:
            yield name, value


def expand_objects(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Replace text cells with JSON objects by the cells of the objects.

    The W&B API writes ``summary`` and ``config`` like this in a CSV.
    """
    if not any(_parse_object(cell) for _, row in rows[:1] for cell in row.values()):
        return list(rows)
    expanded = []
    for place, row in rows:
        cells = {key: cell if (inner := _parse_object(cell)) is None else inner for key, cell in row.items()}
        expanded.append((place, dict(flatten_cells(cells))))
    return expanded


def _parse_object(cell: Any) -> dict[str, Any] | None:
    if not (isinstance(cell, str) and cell.strip().startswith("{") and cell.strip().endswith("}")):
        return None
    for read in (json.loads, _parse_literal):
        try:
            value = read(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, dict) and value else None
    return None


def _parse_literal(text: str) -> Any:
    """Parse a dictionary in Python notation, including nan and inf."""
    return ast.literal_eval(re.sub(r"(?<=[:\[,] )(-?(?:nan|inf))(?=[,}\]])", r"'\1'", text))
