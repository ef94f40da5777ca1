"""Reads files as rows under a header: CSV and other delimited text, JSON, JSON lines and parquet."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.extent import check_extent, check_names, check_text
from flops_fit_core.fitting.io.json_records import (
    expand_objects,
    flatten_cells,
    json_line_records,
    read_json_records,
    split_lines,
)
from flops_fit_core.fitting.io.parquet import read_frame
from flops_fit_core.plugins import limits

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
"""Suffixes of readable files; text formats also with ``.gz``."""

_DELIMITERS = ",;\t|"
_SAMPLE_LINES = 50
"""Lines used to detect the delimiter."""
_END = "\ufdd0"
"""Read after the last line. No text has this code point. If it is inside a cell, a quotation has no end."""


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
    check_extent(path, len(raw.rows), len(raw.header), sum(len(cells) for _, cells in raw.rows))
    check_names(path, raw.header)
    return raw


def _read_format(path: Path) -> RawTable:
    suffix = table_suffix(path)
    if suffix in (".parquet", ".pq"):
        return _read_parquet(path)
    text = read_text(path)
    if suffix == ".json":
        return _from_records(path, read_json_records(path, text))
    check_extent(path, rows=text.count("\n") + text.count("\r") - text.count("\r\n"))
    if suffix in (".jsonl", ".ndjson"):
        return _from_records(path, json_line_records(path, text))
    return _parse_csv(path, text)


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, UTF-16 with a byte order mark, or Windows-1252; also gzipped.

    Raises FitError for a file that cannot be read, is above the limit of a table, or is no text.
    """
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
        raise FitError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    check_text(path, len(data))
    if data[:4] == b"PK\x03\x04":
        raise FitError(f"{path} is a workbook or another archive: save the sheet as CSV")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if "\x00" in text:
        formats = f"readable formats: {', '.join(SUFFIXES)}, with or without .gz"
        raise FitError(f"{path} has NUL characters, so it is not a text table or not UTF-8; {formats}")
    return text.lstrip("\ufeff")  # some programs write a second byte order mark


def _read_at_most(file: IO[bytes] | gzip.GzipFile, limit: int) -> bytes:
    """The first bytes of a file. ``file.read(limit)`` would allocate the limit at once."""
    chunks, size = [], 0
    while size < limit and (chunk := file.read(min(1 << 20, limit - size))):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _parse_csv(path: Path, text: str) -> RawTable:
    body, start, delimiter, names = _split_preamble(text)
    delimiter = delimiter or _detect_delimiter(body[:_SAMPLE_LINES])
    if delimiter == " ":
        body, delimiter = ["\t".join(line.split()) for line in body], "\t"
        names = None if names is None else "\t".join(names.split())
    records = _csv_records(path, body, start, delimiter)
    if names is not None and _is_numeric(body, delimiter):
        names_row = next(csv.reader([names], delimiter=delimiter, skipinitialspace=True))
    else:
        _, names_row = next(records, ("", []))
    check_extent(path, columns=len(names_row), cells=len(names_row) * len(body))
    header, repeated = _make_unique(names_row)
    rows = []
    for place, cells in records:
        if any(cell.strip(" :-") for cell in cells) and not cells[0].startswith("#"):
            _check_cell_count(path, place, header, cells)
            rows.append((place, dict(zip(header, cells, strict=False))))
    if (expanded := expand_objects(rows)) != rows:
        return RawTable(_collect_header(expanded), expanded, repeated)
    return RawTable(header, rows, repeated)


def _split_preamble(text: str) -> tuple[list[str], int, str | None, str | None]:
    """The lines below blank lines, ``sep=;`` and comments, and their start; the delimiter; the last comment."""
    lines = split_lines(text)
    start, delimiter, names = 0, None, None
    while start < len(lines) and not lines[start].strip():
        start += 1
    if start < len(lines) and (match := re.fullmatch(r"sep=(.)", lines[start].strip())):
        delimiter, start = match[1], start + 1
    while start < len(lines) and lines[start].lstrip().startswith("#"):
        names, start = lines[start].strip().lstrip("# \t"), start + 1
    return lines[start:], start, delimiter, names


def _csv_records(path: Path, lines: list[str], start: int, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """(place, cells) of each record; quoted cells may have several lines. Raises FitError with the place."""
    reader = csv.reader([*lines, _END], delimiter=delimiter, skipinitialspace=True)
    first = start + 1
    try:
        for cells in reader:
            if cells == [_END]:
                return
            if cells and cells[-1].endswith(_END):
                raise FitError(f"{path}, row {first}: a quotation mark has no end, so later rows cannot be read")
            yield f"row {start + reader.line_num}", cells
            first = start + reader.line_num + 1
    except csv.Error as error:
        raise FitError(f"{path}, row {first}: {error}") from None


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


_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"


def _make_unique(names: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    header: list[str] = []
    repeated = set()
    counts: dict[str, int] = {}
    for name in names:
        name = name.strip().strip(_ZERO_WIDTH).strip()
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            repeated.add(name)
        header.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return header, frozenset(repeated)


def _from_records(path: Path, records: Iterable[Any]) -> RawTable:
    rows: list[tuple[str, dict[str, Any]]] = []
    records = list(records)
    check_extent(path, rows=len(records))
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
    frame = read_frame(path)

    import pandas

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
