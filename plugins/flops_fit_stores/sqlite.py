"""The ``sqlite`` store: ``results.sqlite``, which you can also open with datasette or the sqlite3 shell.

Table ``results`` has one row per attempt: columns for queries, and ``record``, the complete RunResult as JSON. The
store reads only ``record``. Table ``claims`` has the owner of each claimed run and the end of the claim.

An ``add`` that has returned survives SIGKILL and power failure. While a driver runs, and after it was killed, the
newest results are in the write-ahead log ``results.sqlite-wal``: copy both files, or neither. Write-ahead logs do
not work between machines: on a network file system, only one machine may open the store.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore
from flops_fit_stores.checks import exceeds_64_bits, gc_paused, parse_record, to_columns, validated
from flops_fit_stores.database import COLUMNS, DatabaseFile
from flops_fit_stores.row_digest import row_digest

_NAMES = (*COLUMNS, "sha256")
ADD = (
    f"INSERT INTO results ({', '.join(_NAMES)}) VALUES ({', '.join(f':{name}' for name in _NAMES)}) "  # noqa: S608
    f"ON CONFLICT (id, attempt) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _NAMES)}"
)
_CLAIM = """
    INSERT INTO claims (id, owner, until) VALUES (:id, :owner, :until)
    ON CONFLICT (id) DO UPDATE SET owner = :owner, until = :until WHERE owner = :owner OR until <= :now
"""


class SqliteStore(ResultStore):
    """Results in one SQLite database. One thread; any number of processes on one machine.

    Every method raises StoreError if the database cannot be used.

    Args:
        path: The database, created if it does not exist.
        lock_timeout: Seconds to wait for another process that writes.
    """

    def __init__(self, path: Path, lock_timeout: float) -> None:
        self.path, self.lock_timeout = path, lock_timeout
        self._file = DatabaseFile(path, lock_timeout)

    @property
    def _db(self) -> Database:
        """The database, open for writing."""
        return self._file.writer

    def add(self, result: RunResult) -> None:
        """As in the base class. The result is on disk when this returns."""
        row = to_row(validated(result))
        with self._file.explain():
            self._db.execute(ADD, row)
        self._file.acknowledge()

    def all_attempts(self) -> list[RunResult]:
        return self._query("ORDER BY added")

    def attempts(self, run_id: str) -> list[RunResult]:
        """All attempts at a run, by number. Uses an index."""
        return self._query("WHERE id = :id ORDER BY attempt", id=run_id)

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        now = time.time()
        return self._execute(_CLAIM, id=run_id, owner=owner, until=now + seconds, now=now)

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        sql = "UPDATE claims SET until = :until WHERE id = :id AND owner = :owner"
        return self._execute(sql, id=run_id, owner=owner, until=time.time() + seconds)

    def release(self, run_id: str, owner: str) -> None:
        self._execute("DELETE FROM claims WHERE id = :id AND owner = :owner", id=run_id, owner=owner)

    def close(self) -> None:
        """Close the database."""
        self._file.close()

    def _query(self, clause: str, **values: Any) -> list[RunResult]:
        records = self._file.records(clause, values)
        with gc_paused():
            return [parse_record(record, self.path, run_id, attempt) for run_id, attempt, record in records]

    def _execute(self, sql: str, **values: Any) -> bool:
        """Execute one statement, which is atomic between processes. Returns whether it changed a row."""
        with self._file.explain():
            return self._db.execute(sql, values).rowcount > 0


def to_row(result: RunResult) -> dict[str, Any]:
    """The row of a result. Integers above 64 bits become floats, and times become text: SQLite has neither. The
    record keeps every digit."""
    values = {**to_columns(result), "finished": result.finished.isoformat()}
    row: dict[str, Any] = {
        name: float(value) if exceeds_64_bits(value) else value for name, value in values.items()
    }
    return {**row, "sha256": row_digest(result.id, result.attempt, row["record"])}
