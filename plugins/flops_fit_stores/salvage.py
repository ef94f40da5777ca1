"""Read every intact result of a damaged database, from private copies of its files."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flops_fit_core import RunResult, StoreError
from flops_fit_stores.page_scan import rows_in
from flops_fit_stores.private_copy import copy_files
from flops_fit_stores.records import parse_record
from flops_fit_stores.row_digest import row_digest
from flops_fit_stores.sqlite_checks import is_intact
from flops_fit_stores.sqlite_schema import CHECKSUM_VERSION

_ROWS = (
    # Not ``added``: if the schema is damaged, that column is NULL instead of the row id.
    "SELECT rowid, id, attempt, CAST(record AS BLOB), {checksum} FROM results NOT INDEXED ORDER BY rowid {order}"
)
_ID, _ATTEMPT, _RECORD = 1, 2, 13
"""Positions of values in a row of the table ``results``. The checksum is the last value."""
_EQUAL_DIGITS = 56
"""If so many of the 64 digits of a checksum match, the checksum is damaged and the record is not: the checksum of
another record matches in about 4 digits."""


@dataclass(frozen=True)
class SavedRow:
    """An intact result. ``added`` orders the results of a store."""

    added: int
    run_id: str
    attempt: int
    record: str


@dataclass
class Salvage:
    """The intact results of a store, and the results that are damaged."""

    rows: list[SavedRow] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """Run and attempt of each row that was read and is not intact, as far as they can be read."""


def salvage(path: Path, more: Iterable[tuple[Path, Path]] = ()) -> Salvage:
    """All intact results of a database and its log. Changes nothing.

    Reads the table from both ends, and then every page of both files: an intact record is read even if the pages
    that lead to it are damaged, or if the log is damaged before it.

    Args:
        path: The database. It may be missing.
        more: Further databases with their logs, read after the first. Any of them may be missing.

    Raises OSError.
    """
    rows_by_key: dict[tuple[str, int], SavedRow] = {}
    suspects: dict[int, str] = {}
    log = path.with_name(f"{path.name}-wal")
    for database, its_log in [(path, log), *more]:
        for added, values in _candidates(database, its_log):
            row = _saved(added, *values)
            if row is not None:
                rows_by_key.setdefault((row.run_id, row.attempt), row)
            elif isinstance(values[1], int) and isinstance(values[0], bytes) and values[0].isalnum():
                suspects.setdefault(added, f"run {values[0].decode('ascii', 'replace')}, attempt {values[1]}")
    rows = sorted(rows_by_key.values(), key=lambda row: row.added)
    saved = {f"run {row.run_id}, attempt {row.attempt}" for row in rows}
    added_rows = {row.added for row in rows}
    damaged = [text for added, text in sorted(suspects.items()) if added not in added_rows and text not in saved]
    return Salvage(rows, damaged)


def _candidates(database: Path, log: Path) -> Iterator[tuple[int, tuple[Any, Any, Any, Any]]]:
    """``added``, and (id, attempt, record, checksum), the most credible first."""
    with tempfile.TemporaryDirectory(prefix="flops-fit-") as folder:
        copied = Path(folder) / "copy.sqlite"
        journal = database.with_name(f"{database.name}-journal")
        copies = [copied, *(copied.with_name(f"copy.sqlite-{part}") for part in ("wal", "journal"))]
        copy_files([pair for pair in zip((database, log, journal), copies, strict=True) if pair[0].is_file()])
        contents = [file.read_bytes() if file.exists() else b"" for file in copies[:2]]
        if copied.exists():
            for order in ("ASC", "DESC"):
                yield from _rows_by_sqlite(copied, order)
    for added, values in rows_in(*contents):
        if len(values) > _RECORD:
            last = values[-1]
            checksum = last if len(values) > _RECORD + 1 and isinstance(last, bytes) else None
            yield added, (values[_ID], values[_ATTEMPT], values[_RECORD], checksum)


def _rows_by_sqlite(path: Path, order: str) -> Iterator[tuple[int, tuple[Any, Any, Any, Any]]]:
    """The rows up to the first page that SQLite cannot read."""
    unreadable = (sqlite3.Error, UnicodeDecodeError)  # the message of an error may not be UTF-8
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, suppress(*unreadable):
        connection.text_factory = bytes
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        # By version: if the column is missing because the schema is damaged, no row is read without its checksum.
        checksum = "sha256" if version >= CHECKSUM_VERSION else "NULL"
        for added, *values in connection.execute(_ROWS.format(checksum=checksum, order=order)):
            yield added, (values[0], values[1], values[2], values[3])


def _saved(added: int, run_id: Any, attempt: Any, record: Any, checksum: Any) -> SavedRow | None:
    """The row if its record is intact, with the run and attempt of the record; otherwise None."""
    run_id, checksum = (_text(value) for value in (run_id, checksum))
    if not isinstance(record, bytes):
        return None
    if is_intact(run_id, attempt, record, checksum):
        return SavedRow(added, run_id, attempt, record.decode())
    try:
        result: RunResult = parse_record(record, "", str(run_id), 1)
    except StoreError:
        return None
    if not isinstance(checksum, str) or len(checksum) != 64:
        return None
    # The id, the attempt or the checksum is damaged, and the record is not.
    expected = row_digest(result.id, result.attempt, record)
    equal = sum(left == right for left, right in zip(expected, checksum, strict=True))
    return SavedRow(added, result.id, result.attempt, record.decode()) if equal >= _EQUAL_DIGITS else None


def _text(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        return value.decode("utf-8", "replace")
