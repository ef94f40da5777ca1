"""Files of tables: CSV and its relatives, JSON, JSON lines and parquet, as rows under a header."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.json_records import flat_cells, json_line_records, open_objects, read_json_records

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
        return _of_records(path, json_line_records(path, text))
    if suffix == ".json":
        return _of_records(path, read_json_records(path, text))
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
    if data[:4] == b"PK\x03\x04":
        raise FitError(f"{path} is a workbook or another archive: save the sheet as CSV")
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
    if delimiter == " ":
        body, delimiter = ["\t".join(line.split()) for line in body], "\t"
        names = None if names is None else "\t".join(names.split())
    try:
        reader = csv.reader(body, delimiter=delimiter, skipinitialspace=True)
        if names is not None and _is_numeric(body, delimiter):
            written = next(csv.reader([names], delimiter=delimiter, skipinitialspace=True))
        else:
            written = next(reader, [])
        header, repeated = _unique(written)
        rows = []
        for cells in reader:
            if any(cell.strip(" :-") for cell in cells) and not cells[0].startswith("#"):
                place = f"row {first + reader.line_num}"
                _refuse_more_cells(path, place, header, cells)
                rows.append((place, dict(zip(header, cells, strict=False))))
    except csv.Error as error:
        raise FitError(f"{path}: {error}") from None
    if (opened := open_objects(rows)) != rows:
        return RawTable(_header(opened), opened, repeated)
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
    """The delimiter under which most lines have the columns of the first, and the first has most columns; a space
    for columns with spaces between them."""
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
    spaced = {len(line.split()) for line in lines if line.strip()}
    return " " if score == (0.0, 0) and len(spaced) == 1 and spaced.pop() > 2 else best


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


def _of_records(path: Path, records: Iterable[Any]) -> RawTable:
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise FitError(
                f"{path}: record {number} is not an object with columns such as "
                '{"params": 1e8, "tokens": 2e9, "loss": 3.1}'
            )
        rows.append((f"row {number}", dict(flat_cells(record))))
    return RawTable(_header(rows), rows)


def _header(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(name for _, row in rows for name in row))


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
    if kept := [name for name in frame.index.names if name is not None and name not in frame.columns]:
        frame = frame.reset_index(level=kept)
    header, repeated = _unique([str(name) for name in frame.columns])
    frame.columns = header
    records = frame.to_dict(orient="records")
    rows = [
        (f"row {number}", {str(key): None if value is pandas.NA else value for key, value in row.items()})
        for number, row in enumerate(records, 1)
    ]
    return RawTable(header, rows, repeated)
