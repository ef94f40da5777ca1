"""Reads files as rows under a header: CSV and other delimited text, JSON, JSON lines and parquet."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.json_records import (
    expand_objects,
    flatten_cells,
    json_line_records,
    read_json_records,
)
from flops_fit_core.plugins import limits

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
"""Suffixes of readable files; text formats also with ``.gz``."""

_DELIMITERS = ",;\t|"
_SAMPLE_LINES = 50
"""Lines used to detect the delimiter."""


@dataclass(frozen=True)
class RawTable:
    """Cells as stored in the file: text from CSV, typed values from JSON and parquet."""

    header: list[str]
    """Unique names; a repeated name gets the suffix `` (2)``."""
    rows: list[tuple[str, dict[str, Any]]]
    """(place, cells): ``row 2`` is the first row below the header of a CSV file, and the second record of any
    other file."""
    repeated: frozenset[str] = frozenset()
    """Names that the file uses for several columns."""


def table_suffix(path: Path) -> str:
    """The suffix of the format, ignoring ``.gz``; empty if the file is not a table."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def read_raw(path: Path) -> RawTable:
    """The cells of a file.

    Raises FitError if it cannot be read, has no rows under a header, or is above the limits of
    :mod:`flops_fit_core.plugins.limits`.
    """
    try:
        raw = _read_format(path)
    except RecursionError:
        raise FitError(f"{path}: its values are nested too deeply for a table") from None
    _check_extent(path, len(raw.rows), len(raw.header), sum(len(cells) for _, cells in raw.rows))
    return raw


def _read_format(path: Path) -> RawTable:
    suffix = table_suffix(path)
    if suffix in (".parquet", ".pq"):
        return _read_parquet(path)
    text = _read_text(path)
    if suffix == ".json":
        return _from_records(path, read_json_records(path, text))
    _check_extent(path, rows=sum(map(text.count, _LINE_ENDS)) - text.count("\r\n"))
    if suffix in (".jsonl", ".ndjson"):
        return _from_records(path, json_line_records(path, text))
    return _parse_csv(path, text)


_LINE_ENDS = ("\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
"""The separators of ``str.splitlines``."""
_ADVICE = "Keep the columns of the fit, and one row per run or fewer points of each run"


def _check_extent(path: Path, rows: int = 0, columns: int = 0, cells: int = 0) -> None:
    """Raises FitError, with the limit, for a table that would take gigabytes of memory."""
    for count, limit, unit in (
        (rows, limits.TABLE_ROWS, "rows"),
        (columns, limits.TABLE_COLUMNS, "columns"),
        (cells, limits.TABLE_CELLS, "cells"),
    ):
        if count > limit:
            raise FitError(f"{path} has {count:,} {unit}, and a table has at most {limit:,}. {_ADVICE}")


def _read_text(path: Path) -> str:
    limit = limits.TABLE_BYTES
    try:
        with path.open("rb") as file:
            data = _read_at_most(file, limit + 1)
        if len(data) <= limit and (path.suffix.lower() == ".gz" or data[:2] == b"\x1f\x8b"):
            with gzip.open(io.BytesIO(data)) as unpacked:
                data = _read_at_most(unpacked, limit + 1)
    except FileNotFoundError:
        raise FitError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise FitError(f"{path}: {error}") from None
    if len(data) > limit:
        raise FitError(f"{path}: its text has more than {limit:,} bytes, the limit of a table. {_ADVICE}")
    if data[:4] == b"PK\x03\x04":
        raise FitError(f"{path} is a workbook or another archive: save the sheet as CSV")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if "\x00" in text:
        raise FitError(f"{path} is not a text table; readable formats: {', '.join(SUFFIXES)}, with or without .gz")
    return text


def _read_at_most(file: IO[bytes] | gzip.GzipFile, limit: int) -> bytes:
    """The first bytes of a file. ``file.read(limit)`` would allocate the limit at once."""
    chunks, size = [], 0
    while size < limit and (chunk := file.read(min(1 << 20, limit - size))):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _parse_csv(path: Path, text: str) -> RawTable:
    lines = text.splitlines()
    start, names = 0, None
    while start < len(lines) and not lines[start].strip():
        start += 1
    delimiter = None
    if start < len(lines) and (match := re.fullmatch(r"sep=(.)", lines[start].strip())):
        delimiter, start = match[1], start + 1
    while start < len(lines) and lines[start].lstrip().startswith("#"):
        names, start = lines[start].lstrip("# \t"), start + 1
    body = lines[start:]
    delimiter = delimiter or _detect_delimiter(body[:_SAMPLE_LINES])
    if delimiter == " ":
        body, delimiter = ["\t".join(line.split()) for line in body], "\t"
        names = None if names is None else "\t".join(names.split())
    try:
        reader = csv.reader(body, delimiter=delimiter, skipinitialspace=True)
        if names is not None and _is_numeric(body, delimiter):
            names_row = next(csv.reader([names], delimiter=delimiter, skipinitialspace=True))
        else:
            names_row = next(reader, [])
        _check_extent(path, columns=len(names_row), cells=len(names_row) * len(body))
        header, repeated = _make_unique(names_row)
        rows = []
        for cells in reader:
            if any(cell.strip(" :-") for cell in cells) and not cells[0].startswith("#"):
                place = f"row {start + reader.line_num}"
                _check_cell_count(path, place, header, cells)
                rows.append((place, dict(zip(header, cells, strict=False))))
    except csv.Error as error:
        raise FitError(f"{path}: {error}") from None
    if (expanded := expand_objects(rows)) != rows:
        return RawTable(_collect_header(expanded), expanded, repeated)
    return RawTable(header, rows, repeated)


def _check_cell_count(path: Path, place: str, header: Sequence[str], cells: Sequence[str]) -> None:
    """Raise for cells beyond the header: they have no column, and other cells may be in the wrong column."""
    if any(cell.strip() for cell in cells[len(header) :]):
        raise FitError(
            f"{path}, {place}: {len(cells)} cells, but the header has {len(header)} names ({', '.join(header)}). "
            "Quote numbers with a comma, or separate cells with ; instead, and name every column"
        )


def _detect_delimiter(lines: Sequence[str]) -> str:
    """Detect the delimiter: most lines have as many columns as the first, and the first has many columns.

    Returns a space if columns are separated by spaces.
    """
    best, score = ",", (0.0, 0)
    for delimiter in _DELIMITERS:
        try:
            counts = [len(cells) for cells in csv.reader(lines, delimiter=delimiter) if cells]
        except csv.Error:
            continue
        if counts and counts[0] > 1:
            share = sum(count == counts[0] for count in counts) / len(counts)
            if (share, counts[0]) > score:
                best, score = delimiter, (share, counts[0])
    word_counts = {len(line.split()) for line in lines if line.strip()}
    return " " if score == (0.0, 0) and len(word_counts) == 1 and word_counts.pop() > 2 else best


def _is_numeric(lines: Sequence[str], delimiter: str) -> bool:
    """Whether the first line has only numbers, so that the comment above it is the header."""
    cells = next(csv.reader(lines[:1], delimiter=delimiter), [])
    return bool(cells) and all(re.fullmatch(r"\s*[-+\d.eE]+\s*", cell) for cell in cells)


def _make_unique(names: Sequence[str]) -> tuple[list[str], frozenset[str]]:
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


def _from_records(path: Path, records: Iterable[Any]) -> RawTable:
    rows: list[tuple[str, dict[str, Any]]] = []
    records = list(records)
    _check_extent(path, rows=len(records))
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise FitError(
                f"{path}: record {number} is not an object with columns such as "
                '{"params": 1e8, "tokens": 2e9, "loss": 3.1}'
            )
        rows.append((f"row {number}", dict(flatten_cells(record))))
    return RawTable(_collect_header(rows), rows)


def _collect_header(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(name for _, row in rows for name in row))


def _read_parquet(path: Path) -> RawTable:
    try:
        import pandas
    except ImportError as error:
        raise FitError(
            f"{path}: reading parquet needs pandas and pyarrow ({error}): pip install 'flops-fit[parquet]'"
        ) from None
    try:
        _check_parquet(path)
        frame = pandas.read_parquet(path)
    except FitError:
        raise
    except FileNotFoundError:
        raise FitError(f"{path}: no such file") from None
    except Exception as error:
        raise FitError(f"{path}: {error}") from None
    if index_names := [name for name in frame.index.names if name is not None and name not in frame.columns]:
        frame = frame.reset_index(level=index_names)
    header, repeated = _make_unique([str(name) for name in frame.columns])
    frame.columns = header
    records = frame.to_dict(orient="records")
    rows = [
        (f"row {number}", {str(key): None if value is pandas.NA else value for key, value in row.items()})
        for number, row in enumerate(records, 1)
    ]
    return RawTable(header, rows, repeated)


def _check_parquet(path: Path) -> None:
    """Raises FitError for a table above the limits, before its columns are read: they may be highly compressed."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.ParquetFile(path).metadata
    _check_extent(path, metadata.num_rows, metadata.num_columns)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = range(metadata.num_columns)
    _check_extent(path, cells=sum(group.column(column).num_values for group in groups for column in columns))
