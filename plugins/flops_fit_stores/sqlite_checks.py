"""Check a database completely before anything is read from it or written to it.

SQLite has no checksums: a flipped bit in a page gives another value, another row or no row. Opening therefore runs
``integrity_check``, which compares indexes with tables, compares every row with its checksum, and compares the
number of rows with the lower bound. 100,000 results of 3 kB take 0.8 seconds of CPU time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from flops_fit_core import StoreError
from flops_fit_stores.errors import Damage, summary
from flops_fit_stores.records import parse_record
from flops_fit_stores.row_digest import row_digest
from flops_fit_stores.sqlite_schema import has_checksums

_ALL_ROWS = "SELECT id, attempt, CAST(record AS BLOB), {checksum} FROM results NOT INDEXED ORDER BY added"


def check_content(connection: sqlite3.Connection, bound: int | None) -> None:
    """Check every page, every row and the number of rows.

    Args:
        connection: A database with the tables of a store.
        bound: The lower bound of the number of results, read before; None if there is none.

    Raises Damage, and sqlite3.Error.
    """
    problems = [text for (text,) in connection.execute("PRAGMA integrity_check(1)")]
    if problems != ["ok"]:
        raise Damage(problems[0].strip().split("\n")[-1])
    checksum = "sha256" if has_checksums(connection) else "NULL"
    count = _check_rows(connection.execute(_ALL_ROWS.format(checksum=checksum)))
    check_count(count, bound)


def check_count(count: int, bound: int | None) -> None:
    """Raises Damage if there are fewer results than the lower bound."""
    if bound is not None and count < bound:
        raise Damage(f"{bound - count} of {bound} results are missing")


def _check_rows(rows: Iterable[tuple[object, object, object, object]]) -> int:
    """The number of rows. Raises Damage, which names the first damaged rows."""
    count, damaged = 0, []
    for row in rows:
        count += 1
        if not is_intact(*row):
            damaged.append(f"run {row[0]}, attempt {row[1]}")
    if damaged:
        raise Damage(f"{summary(damaged, most=3)}: the stored result is not intact")
    return count


def is_intact(run_id: object, attempt: object, record: object, checksum: object) -> bool:
    """Whether a row matches its checksum. Without a checksum (schema version 1), its record must name the run."""
    if not (isinstance(run_id, str) and isinstance(attempt, int) and isinstance(record, bytes)):
        return False
    if checksum is not None:
        return row_digest(run_id, attempt, record) == checksum
    try:
        result = parse_record(record, "", run_id, attempt)
    except StoreError:
        return False
    return (result.id, result.attempt) == (run_id, attempt)
