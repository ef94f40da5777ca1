"""The ``sqlite`` store: ``results.sqlite``, which you can also open with datasette or the sqlite3 shell.

Table ``results`` has one row per attempt: columns for queries, and ``record``, the complete RunResult as JSON. The
store reads only ``record``. Table ``claims`` has the owner, the token and the lease of each claimed run.

An ``add`` that has returned survives SIGKILL and power failure. While a driver runs, and after it was killed, the
newest results are in the write-ahead log ``results.sqlite-wal``: copy both files, or neither. Write-ahead logs do
not work between machines: on a network file system, only one machine may open the store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flops_fit_core import RunResult, StoreError
from flops_fit_core.plugins import ResultStore, settle_result
from flops_fit_stores.checks import exceeds_64_bits, gc_paused, parse_record, to_columns, validated
from flops_fit_stores.database import COLUMNS, explain_errors, open_database
from flops_fit_stores.sqlite_claims import SqliteClaims, write_transaction

_ADD = (
    f"INSERT INTO results ({', '.join(COLUMNS)}) VALUES ({', '.join(f':{name}' for name in COLUMNS)}) "  # noqa: S608
    f"ON CONFLICT (id, attempt) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS)}"
)
_ALL_ATTEMPTS = "SELECT id, attempt, record FROM results ORDER BY added"
_ATTEMPTS = "SELECT id, attempt, record FROM results WHERE id = :id ORDER BY attempt"


class SqliteStore(ResultStore):
    """Results in one SQLite database. One thread; any number of processes on one machine.

    Every method raises StoreError if the database cannot be used.

    Args:
        path: The database, created if it does not exist.
        lock_timeout: Seconds to wait for another process that writes.
    """

    fenced = True

    def __init__(self, path: Path, lock_timeout: float) -> None:
        self.path, self.lock_timeout = path, lock_timeout
        self._db = open_database(path, lock_timeout)
        self._claims = SqliteClaims(self._db)
        self._inode = path.stat().st_ino

    def add(self, result: RunResult, token: str | None = None) -> RunResult:
        """As in the base class. The result is on disk when this returns."""
        result = validated(result)
        with explain_errors(self.path, self.lock_timeout):
            if not self.path.exists() or self.path.stat().st_ino != self._inode:
                raise StoreError(f"{self.path}: moved or deleted while in use. Put it back and run again")
            with write_transaction(self._db):
                return self._add(result, token)

    def _add(self, result: RunResult, token: str | None) -> RunResult:
        if token is None:
            self._db.execute(_ADD, _row(result))
            return result
        holds_claim = self._claims.is_valid(result.id, token)
        attempts = self.attempts(result.id)
        stored = settle_result(result, attempts, holds_claim=holds_claim)
        if stored not in attempts:
            self._db.execute(_ADD, _row(stored))
            if stored.is_finished and not holds_claim and not stored.superseded:
                self._claims.end(result.id)
        return stored

    def all_attempts(self) -> list[RunResult]:
        return self._query(_ALL_ATTEMPTS)

    def attempts(self, run_id: str) -> list[RunResult]:
        """All attempts at a run, by number. Uses an index."""
        return self._query(_ATTEMPTS, id=run_id)

    def claim(self, run_id: str, owner: str, seconds: float) -> str | bool:
        with explain_errors(self.path, self.lock_timeout):
            return self._claims.take(run_id, owner, seconds) or False

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        with explain_errors(self.path, self.lock_timeout):
            return self._claims.extend(run_id, owner, seconds)

    def release(self, run_id: str, owner: str) -> None:
        with explain_errors(self.path, self.lock_timeout):
            self._claims.drop(run_id, owner)

    def close(self) -> None:
        """Close the database. The last process to close it merges the write-ahead log into it."""
        with explain_errors(self.path, self.lock_timeout):
            self._db.conn.close()

    def _query(self, sql: str, **values: Any) -> list[RunResult]:
        with explain_errors(self.path, self.lock_timeout):
            rows = self._db.execute(sql, values).fetchall()
        with gc_paused():
            return [parse_record(record, self.path, run_id, attempt) for run_id, attempt, record in rows]


def _row(result: RunResult) -> dict[str, Any]:
    """The row of a result. Integers above 64 bits become floats, and times become text: SQLite has neither. The
    record keeps every digit."""
    values = {**to_columns(result), "finished": result.finished.isoformat()}
    return {name: float(value) if exceeds_64_bits(value) else value for name, value in values.items()}
