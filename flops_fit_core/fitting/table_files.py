"""Files of tables: CSV and its relatives, JSON, JSON lines and parquet, as rows under a header."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
"""Of files that are read; those of text also with ``.gz`` after them."""

_DELIMITERS = ",;\t|"
_SAMPLE = 50
"""Lines from which the delimiter is chosen."""


@dataclass(frozen=True)
class RawTable:
    """Cells as the file writes them: text from CSV, typed values from JSON and parquet."""

    header: list[str]
    """Every name once; a repeated name has `` (2)`` after it."""
    rows: list[tuple[str, dict[str, Any]]]
    """(place, cells): ``row 2`` is the first row below the header of a CSV file and the second record of
    others."""
    repeated: frozenset[str] = frozenset()
    """Names that the file writes over several columns."""


def table_suffix(path: Path) -> str:
    """The suffix that tells the format, ``.gz`` apart; empty where the file is no table."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def read_raw(path: Path) -> RawTable:
    """The cells of a file. Raises FitError where it cannot be read or holds no rows under a header."""
    suffix = table_suffix(path)
    if suffix in (".parquet", ".pq"):
        return _parquet(path)
    text = _text(path)
    if suffix in (".jsonl", ".ndjson"):
        return _of_records(path, _json_lines(path, text))
    if suffix == ".json":
        return _of_records(path, _json_records(path, text))
    return _csv(path, text)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz" or data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise FitError(f"{path}: there is no such file") from None
    except (OSError, EOFError) as error:
        raise FitError(f"{path}: {error}") from None
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if "\x00" in text:
        raise FitError(f"{path} is not a table of text; readable are {', '.join(SUFFIXES)}, with or without .gz")
    return text


def _csv(path: Path, text: str) -> RawTable:
    lines = text.splitlines()
    first, names = 0, None
    while first < len(lines) and not lines[first].strip():
        first += 1
    delimiter = None
    if first < len(lines) and (match := re.fullmatch(r"sep=(.)", lines[first].strip())):
        delimiter, first = match[1], first + 1
    while first < len(lines) and lines[first].lstrip().startswith("#"):
        names, first = lines[first].lstrip("# \t"), first + 1
    body = lines[first:]
    delimiter = delimiter or _delimiter(body[:_SAMPLE])
    try:
        reader = csv.reader(body, delimiter=delimiter, skipinitialspace=True)
        if names is not None and _is_numeric(body, delimiter):
            written = next(csv.reader([names], delimiter=delimiter, skipinitialspace=True))
        else:
            written = next(reader, [])
        header, repeated = _unique(written)
        rows = []
        for cells in reader:
            if any(cell.strip() for cell in cells) and not cells[0].startswith("#"):
                place = f"row {first + reader.line_num}"
                _refuse_more_cells(path, place, header, cells)
                rows.append((place, dict(zip(header, cells, strict=False))))
    except csv.Error as error:
        raise FitError(f"{path}: {error}") from None
    return RawTable(header, rows, repeated)


def _refuse_more_cells(path: Path, place: str, header: Sequence[str], cells: Sequence[str]) -> None:
    """Cells beyond the header have no column, and every cell may have slipped into the wrong one."""
    if any(cell.strip() for cell in cells[len(header) :]):
        raise FitError(
            f"{path}, {place}: {len(cells)} cells under a header of {len(header)} names ({', '.join(header)}). "
            "Numbers with a comma need quotes, or a file with ; between the cells; a column without a name "
            "needs one"
        )


def _delimiter(lines: Sequence[str]) -> str:
    """The delimiter under which most lines have the columns of the first, and the first has most columns."""
    best, score = ",", (0.0, 0)
    for delimiter in _DELIMITERS:
        try:
            counts = [len(cells) for cells in csv.reader(lines, delimiter=delimiter) if cells]
        except csv.Error:
            continue
        if counts and counts[0] > 1:
            same = sum(count == counts[0] for count in counts) / len(counts)
            if (same, counts[0]) > score:
                best, score = delimiter, (same, counts[0])
    return best


def _is_numeric(lines: Sequence[str], delimiter: str) -> bool:
    """Whether the first line holds numbers only, so that the header is the comment above it."""
    cells = next(csv.reader(lines[:1], delimiter=delimiter), [])
    return bool(cells) and all(re.fullmatch(r"\s*[-+\d.eE]+\s*", cell) for cell in cells)


def _unique(names: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    header: list[str] = []
    repeated = set()
    counts: dict[str, int] = {}
    for name in names:
        name = name.strip()
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            repeated.add(name)
        header.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return header, frozenset(repeated)


def _json_lines(path: Path, text: str) -> list[Any]:
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise FitError(f"{path}, line {number}: not JSON: {error}") from None
    return records


def _json_records(path: Path, text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(path, text)
        raise FitError(f"{path}: not JSON: {error}") from None
    records = json_records(value)
    if records is None:
        raise FitError(f'{path} holds no table: write a list of records such as {{"params": 1e8, "tokens": 2e9}}')
    return records


def json_records(value: Any) -> list[Any] | None:
    """Records of a list, of a list under a key such as ``runs``, or of columns as pandas writes them; None
    without."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return None
    if {"columns", "data"} <= set(value):
        return [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"]]
    for key in ("data", "rows", "runs", "results", "records"):
        if isinstance(value.get(key), list):
            return list(value[key])
    inner = list(value.values())
    if all(isinstance(column, list) for column in inner):
        return [dict(zip(value, cells, strict=False)) for cells in zip(*inner, strict=False)]
    if not all(isinstance(column, dict) and column for column in inner):
        return None
    if all(key.isdigit() for key in value):
        return inner
    keys = list(dict.fromkeys(key for column in inner for key in column))
    if all(key.isdigit() for key in keys):
        return [{name: column.get(key) for name, column in value.items()} for key in keys]
    return None


def _of_records(path: Path, records: Iterable[Any]) -> RawTable:
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise FitError(
                f"{path}: record {number} is not an object with columns such as "
                '{"params": 1e8, "tokens": 2e9, "loss": 3.1}'
            )
        rows.append((f"row {number}", dict(_flat(record))))
    header = list(dict.fromkeys(name for _, row in rows for name in row))
    return RawTable(header, rows)


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Cells of nested objects under ``outer.inner``; W&B writes ``{"value": x}`` for x."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and set(value) <= {"value", "desc"} and "value" in value:
            value = value["value"]
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _parquet(path: Path) -> RawTable:
    try:
        import pandas
    except ImportError as error:
        raise FitError(
            f"{path}: reading parquet needs pandas and pyarrow ({error}): pip install 'flops-fit[parquet]'"
        ) from None
    try:
        frame = pandas.read_parquet(path)
    except FileNotFoundError:
        raise FitError(f"{path}: there is no such file") from None
    except Exception as error:
        raise FitError(f"{path}: {error}") from None
    header, repeated = _unique([str(name) for name in frame.columns])
    frame.columns = header
    records = frame.to_dict(orient="records")
    rows = [
        (f"row {number}", {str(key): None if value is pandas.NA else value for key, value in row.items()})
        for number, row in enumerate(records, 1)
    ]
    return RawTable(header, rows, repeated)
