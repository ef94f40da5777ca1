"""Tables in JSON: lists of records, columns, records by name, and what W&B writes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError


def json_line_records(path: Path, text: str) -> list[Any]:
    """One record a line."""
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise FitError(f"{path}, line {number}: not JSON: {error}") from None
    return records


def read_json_records(path: Path, text: str) -> list[Any]:
    """The records of a file, whichever way it holds them. Raises FitError where it holds no table."""
    try:
        value = json.loads(text)
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


def json_records(value: Any) -> list[Any] | None:
    """Records of a list, of a list under a key such as ``runs``, of columns as pandas writes them, or under the
    name of each run; None without."""
    if isinstance(value, list):
        return _under_header(value)
    if not isinstance(value, dict) or not value:
        return None
    if {"columns", "data"} <= set(value):
        return [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"]]
    for key in ("data", "rows", "runs", "results", "records"):
        if isinstance(value.get(key), list):
            return _under_header(value[key])
    inner = list(value.values())
    if all(isinstance(column, list) for column in inner):
        return [dict(zip(value, cells, strict=False)) for cells in zip(*inner, strict=False)]
    if all(isinstance(column, dict) and column for column in inner):
        return _of_objects(value)
    lists = [rows for rows in inner if _is_list_of_records(rows)]
    return list(lists[0]) if len(lists) == 1 and _names_a_loss(lists[0][0]) else None


def _of_objects(value: Mapping[str, Mapping[str, Any]]) -> list[Any] | None:
    """Records of objects by row, by column, or by the name of a run."""
    if all(key.isdigit() for key in value):
        return list(value.values())
    keys = list(dict.fromkeys(key for column in value.values() for key in column))
    if all(key.isdigit() for key in keys):
        return [{name: column.get(key) for name, column in value.items()} for key in keys]
    if all(map(_names_a_loss, value.values())) and not _names_a_loss(value):
        return [{"run": name, **row} for name, row in value.items()]
    return None


def _under_header(rows: Sequence[Any]) -> list[Any]:
    """Records of lists below a list of names; other lists as they are."""
    if (
        len(rows) > 1
        and all(isinstance(row, list) for row in rows)
        and all(isinstance(name, str) for name in rows[0])
    ):
        return [dict(zip(rows[0], cells, strict=False)) for cells in rows[1:]]
    return list(rows)


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _names_a_loss(record: Mapping[str, Any]) -> bool:
    return any(re.search(r"(?:^|[^a-z])(?:loss|nll|bpb)(?:$|[^a-z])", str(key).lower()) for key in record)


def flat_cells(record: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Cells of nested objects under ``outer.inner``; W&B writes ``{"value": x}`` for x."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and set(value) <= {"value", "desc"} and "value" in value:
            value = value["value"]
        if isinstance(value, dict):
            yield from flat_cells(value, f"{name}.")
        else:
            yield name, value


def open_objects(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Rows whose cells of text hold objects, as the W&B API's ``summary`` and ``config`` in a CSV, with the
    cells of the objects in their place."""
    if not any(_object(cell) for _, row in rows[:1] for cell in row.values()):
        return list(rows)
    opened = []
    for place, row in rows:
        cells = {key: cell if (inner := _object(cell)) is None else inner for key, cell in row.items()}
        opened.append((place, dict(flat_cells(cells))))
    return opened


def _object(cell: Any) -> dict[str, Any] | None:
    if not (isinstance(cell, str) and cell.strip().startswith("{") and cell.strip().endswith("}")):
        return None
    for read in (json.loads, _literal):
        try:
            value = read(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, dict) and value else None
    return None


def _literal(text: str) -> Any:
    """A dictionary as Python prints it, nan and inf included."""
    return ast.literal_eval(re.sub(r"(?<=[:\[,] )(-?(?:nan|inf))(?=[,}\]])", r"'\1'", text))
