"""The ``sqlite`` store: ``results.sqlite``, which you can also open with datasette or the sqlite3 shell.

Table ``results`` has one row per attempt: columns for queries, and ``record``, the complete RunResult as JSON. The
store reads only ``record``. Table ``claims`` has the owner, the token and the lease of each claimed run.

An ``add`` that has returned survives SIGKILL and power failure. It is merged into the database before ``add``
returns, unless a reader uses the log ``results.sqlite-wal``: copy all files of the store, or none. Every row has a
checksum, and ``results.sqlite.count`` has a lower bound of the number of results.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore, settle_result
from flops_fit_stores.database import DatabaseFile
from flops_fit_stores.records import COLUMNS, gc_paused, parse_record, to_columns, validated
from flops_fit_stores.row_digest import row_digest
from flops_fit_stores.sqlite_claims import SqliteClaims
from flops_fit_stores.sqlite_transaction import write_transaction

_NAMES = (*COLUMNS, "sha256")
ADD = (
    f"INSERT INTO results ({', '.join(_NAMES)}) VALUES ({', '.join(f':{name}' for name in _NAMES)}) "  # noqa: S608
    f"ON CONFLICT (id, attempt) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _NAMES)}"
)


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
        self._file = DatabaseFile(path, lock_timeout)
        self._claims: SqliteClaims | None = None

    def add(self, result: RunResult, token: str | None = None) -> RunResult:
        """As in the base class. The result is on disk when this returns."""
        result = validated(result)
        with self._file.explain(), write_transaction(self._file.writer):
            stored = self._add(result, token)
        self._file.acknowledge()
        return stored

    def _add(self, result: RunResult, token: str | None) -> RunResult:
        db, claims = self._file.writer, self._writable_claims()
        if token is None:
            db.execute(ADD, to_row(result))
            return result
        holds_claim = claims.is_valid(result.id, token)
        attempts = self.attempts(result.id)
        stored = settle_result(result, attempts, holds_claim=holds_claim)
        if stored not in attempts:
            db.execute(ADD, to_row(stored))
            if stored.is_finished and not holds_claim and not stored.superseded:
                claims.end(result.id)
        return stored

    def all_attempts(self) -> list[RunResult]:
        return self._query("ORDER BY added")

    def attempts(self, run_id: str) -> list[RunResult]:
        """All attempts at a run, by number. Uses an index."""
        return self._query("WHERE id = :id ORDER BY attempt", id=run_id)

    def claim(self, run_id: str, owner: str, seconds: float) -> str | bool:
        with self._file.explain():
            return self._writable_claims().take(run_id, owner, seconds) or False

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        with self._file.explain():
            return self._writable_claims().extend(run_id, owner, seconds)

    def release(self, run_id: str, owner: str) -> None:
        with self._file.explain():
            self._writable_claims().drop(run_id, owner)

    def close(self) -> None:
        """Close the database."""
        self._file.close()

    def _writable_claims(self) -> SqliteClaims:
        """The claims in the database, which is opened for writing first."""
        db = self._file.writer
        if self._claims is None:
            self._claims = SqliteClaims(db)
        return self._claims

    def _query(self, clause: str, **values: Any) -> list[RunResult]:
        records = self._file.records(clause, values)
        with gc_paused():
            return [parse_record(record, self.path, run_id, attempt) for run_id, attempt, record in records]


def to_row(result: RunResult) -> dict[str, Any]:
    """The row of a result. Integers above 64 bits become floats, and times become text: SQLite has neither. The
    record keeps every digit."""
    values = {**to_columns(result), "finished": result.finished.isoformat()}
    row: dict[str, Any] = {
        name: float(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value
        for name, value in values.items()
    }
    return {**row, "sha256": row_digest(result.id, result.attempt, row["record"])}
