"""The ``sqlite`` store: ``results.sqlite``, to be opened with datasette or the sqlite3 shell as well.

Table ``results`` has a row an attempt: the columns people ask for, and ``record``, the whole RunResult as
JSON, which alone is read back. Table ``claims`` says who is training what, and until when.

An ``add`` that has returned survives SIGKILL and power failure. While a driver runs, and after one was
killed, the newest results are in the write-ahead log ``results.sqlite-wal``: copy both files, or neither.
Such a log does not work between machines: on a network file system only one may have the store open.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flops_fit_core import RunResult, StoreError
from flops_fit_core.plugins import ResultStore
from flops_fit_stores.checks import checked, flat, from_record, is_long, uncollected
from flops_fit_stores.database import COLUMNS, explained, open_database

_ADD = (
    f"INSERT INTO results ({', '.join(COLUMNS)}) VALUES ({', '.join(f':{name}' for name in COLUMNS)}) "  # noqa: S608
    f"ON CONFLICT (id, attempt) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS)}"
)
_ALL_ATTEMPTS = "SELECT id, attempt, record FROM results ORDER BY added"
_ATTEMPTS = "SELECT id, attempt, record FROM results WHERE id = :id ORDER BY attempt"
_CLAIM = """
    INSERT INTO claims (id, owner, until) VALUES (:id, :owner, :until)
    ON CONFLICT (id) DO UPDATE SET owner = :owner, until = :until WHERE owner = :owner OR until <= :now
"""


class SqliteStore(ResultStore):
    """Results in one SQLite database. One thread; any number of processes on one machine.

    Every method raises StoreError where the database cannot be used.

    Args:
        path: The database, created where there is none.
        lock_timeout: Seconds to wait for another process that is writing.
    """

    def __init__(self, path: Path, lock_timeout: float) -> None:
        self.path, self.lock_timeout = path, wait
        self._db = open_database(path, lock_timeout)
        self._inode = path.stat().st_ino

    def add(self, result: RunResult) -> None:
        """Keep one attempt, replacing the same attempt at the same run. On disk when it returns.

        Raises ValueError for a number that is not finite.
        """
        row = _row(checked(result))
        with self._explained():
            if not self.path.exists() or self.path.stat().st_ino != self._inode:
                raise StoreError(f"{self.path}: moved or deleted while in use. Put it back and run again")
            self._db.execute(_ADD, row)

    def all_attempts(self) -> list[RunResult]:
        """Every attempt at every run, in the order in which they were added."""
        return self._query(_ALL_ATTEMPTS)

    def attempts(self, run_id: str) -> list[RunResult]:
        """Every attempt at a run, by its number. An index finds them."""
        return self._query(_ATTEMPTS, id=run_id)

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        """Take the right to train a run for that long; False while somebody else holds it."""
        now = time.time()
        return self._changes(_CLAIM, id=run_id, owner=owner, until=now + seconds, now=now)

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        """Hold a claim for that long from now; False where it has been lost to somebody else."""
        sql = "UPDATE claims SET until = :until WHERE id = :id AND owner = :owner"
        return self._changes(sql, id=run_id, owner=owner, until=time.time() + seconds)

    def release(self, run_id: str, owner: str) -> None:
        """Give a claim back. Nothing happens where ``owner`` does not hold it."""
        self._changes("DELETE FROM claims WHERE id = :id AND owner = :owner", id=run_id, owner=owner)

    def close(self) -> None:
        """Close the database; the last to close it folds the write-ahead log into it."""
        with self._explained():
            self._db.conn.close()

    def _query(self, sql: str, **values: Any) -> list[RunResult]:
        with self._explained():
            rows = self._db.execute(sql, values).fetchall()
        with uncollected():
            return [from_record(record, self.path, run_id, attempt) for run_id, attempt, record in rows]

    def _changes(self, sql: str, **values: Any) -> bool:
        """Whether one statement, atomic between processes, changed anything."""
        with self._explained():
            return self._db.execute(sql, values).rowcount > 0

    @contextmanager
    def _explained(self) -> Iterator[None]:
        with explained(self.path, self.lock_timeout):
            yield


def _row(result: RunResult) -> dict[str, Any]:
    """SQLite's integers have 64 bits, and it has no times; the record keeps every digit."""
    values = {**flat(result), "finished": result.finished.isoformat()}
    return {name: float(value) if is_long(value) else value for name, value in values.items()}
