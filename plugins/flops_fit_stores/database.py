"""The file ``results.sqlite`` and its lower bound: checked before they are read, opened for writing if needed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flops_fit_core import StoreError
from flops_fit_stores.errors import START_NEW, Damage, DamagedStore
from flops_fit_stores.files import make_folder
from flops_fit_stores.journal_mode import set_journal_mode
from flops_fit_stores.lower_bound import LowerBound
from flops_fit_stores.row_digest import row_digest
from flops_fit_stores.sqlite_checks import check_content, check_count
from flops_fit_stores.sqlite_errors import explain_errors
from flops_fit_stores.sqlite_library import Database
from flops_fit_stores.sqlite_reader import Reader
from flops_fit_stores.sqlite_schema import check_schema, has_checksums, migrate
from flops_fit_stores.sqlite_transaction import write_transaction

_RECORDS = "SELECT id, attempt, CAST(record AS BLOB), {checksum} FROM results "


class DatabaseFile:
    """``results.sqlite`` and its lower bound. Opened for reading first, and for writing at the first write.

    Opening checks the complete database: a damaged file is never written to, and never read in part. Used by one
    thread. Every method raises StoreError for a file that is damaged, foreign or of a newer schema, without any
    change.

    Args:
        path: The database. It need not exist; the first write creates it.
        lock_timeout: Seconds to wait for other processes.
    """

    def __init__(self, path: Path, lock_timeout: float) -> None:
        self.path, self.lock_timeout = path, lock_timeout
        self.bound = LowerBound(path.with_name(f"{path.name}.count"))
        self._reader: Reader | None = None
        self._writer: Database | None = None
        self._inode = 0
        self._damage: DamagedStore | None = None
        self._has_tables, self._checksum = False, "sha256"
        if any(parent.is_file() for parent in path.parents):
            make_folder(path.parent)  # raises a StoreError that names the folder
        with self.explain():
            self._open_reader()

    def records(self, clause: str, values: Mapping[str, Any]) -> list[tuple[str, int, bytes]]:
        """Run id, attempt and record of all rows that a clause selects, such as ``ORDER BY added``. Every row
        is compared with its checksum."""
        with self.explain():
            rows = self.query(_RECORDS + clause, values)
            for run_id, attempt, record, expected in rows:
                if expected is not None and row_digest(run_id, attempt, record) != expected:
                    raise Damage(f"run {run_id}, attempt {attempt}: the stored result is not intact")
        return [row[:3] for row in rows]

    def query(self, sql: str, values: Mapping[str, Any]) -> list[Any]:
        """The rows of a query; empty if there are no tables yet.

        ``{checksum}`` stands for the column of checksums, which databases of schema version 1 lack.
        """
        with self.explain():
            if self._writer is not None:
                return list(self._writer.execute(sql.format(checksum="sha256"), dict(values)).fetchall())
            if self._reader is None:
                self._open_reader()  # another process may have created the file
            if self._reader is None or not self._has_tables:
                return []
            return self._reader.rows(sql.format(checksum=self._checksum), dict(values))

    @property
    def writer(self) -> Database:
        """The database, open for writing in autocommit mode, with the latest schema.

        Raises StoreError after damage was found, if the file was moved, or if the folder is read-only.
        """
        if self._damage is not None:
            raise self._damage
        with self.explain():
            if self._writer is None:
                self._open_writer()
            elif not self.path.exists() or self.path.stat().st_ino != self._inode:
                raise StoreError(f"{self.path}: moved or deleted while in use. Put it back and run again")
            assert self._writer is not None
            return self._writer

    def acknowledge(self) -> None:
        """Make committed results independent of the log: raise the lower bound, then merge the log into the
        database and empty it. Called after a commit and before ``add`` returns."""
        with self.explain():
            db = self.writer
            # The bound is written under the lock of the writers: two processes would overwrite each other's.
            with write_transaction(db):
                (count,) = db.execute("SELECT COUNT(*) FROM results").fetchone()
                self.bound.raise_to(count)
            self._merge_log(db)

    def close(self) -> None:
        """Close the database. The last process to close it after a write removes the write-ahead log."""
        with self.explain():
            if self._reader is not None:
                self._reader.close()
            if self._writer is not None:
                self._writer.conn.close()

    @contextmanager
    def explain(self) -> Iterator[None]:
        """Convert errors of SQLite and the file system to StoreError. Remembers damage."""
        try:
            with explain_errors(self.path, self.lock_timeout):
                yield
        except DamagedStore as error:
            self._damage = error
            raise

    def _open_reader(self) -> None:
        _refuse_unfinished_repair(self.path)
        bound = self.bound.read()
        _check_log(self.path)
        if not self.path.exists() or self.path.stat().st_size == 0:
            if bound:
                state = "empty" if self.path.exists() else "missing"
                raise Damage(f"the file is {state}, and {bound} results were stored")
            return
        if not self.path.is_file():
            raise StoreError(f"{self.path}: not a file. {START_NEW}")
        self._reader = Reader(self.path, self.lock_timeout, self._check)

    def _check(self, connection: sqlite3.Connection) -> None:
        bound = self.bound.read()  # before the rows are counted: another process may add results
        self._has_tables = check_schema(self.path, connection)
        self._checksum = "sha256" if has_checksums(connection) else "NULL"
        if self._has_tables:
            check_content(connection, bound)
        else:
            check_count(0, bound)

    def _open_writer(self) -> None:
        make_folder(self.path.parent)
        _refuse_read_only(self.path)
        if self._reader is None:
            self._open_reader()
        if self._reader is not None:
            self._reader.close()  # a change of the journal mode needs the database alone
            self._reader = None
        _create(self.path)
        connection = sqlite3.connect(self.path, timeout=self.lock_timeout, isolation_level=None)
        try:
            check_schema(self.path, connection)
            db = Database(connection, execute_plugins=False)
            migrate(db)
            set_journal_mode(db, self.path, self.lock_timeout)
        except BaseException:
            connection.close()
            raise
        self._writer, self._inode = db, self.path.stat().st_ino

    def _merge_log(self, db: Database) -> None:
        """Without waiting: a reader that uses the log would delay it, and the next call merges the rest."""
        db.execute("PRAGMA busy_timeout = 0")
        try:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError:
            pass  # the result is in the log, which is on disk; a full disk is reported by the next commit
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(self.lock_timeout * 1000)}")


def _refuse_unfinished_repair(path: Path) -> None:
    if repair_marker(path).exists():
        error = DamagedStore(
            f"{path}: its repair was interrupted. No result is lost. To complete it: flops-fit store repair "
            f"{path.parent}"
        )
        error.reason = "its repair was interrupted"
        raise error


def repair_marker(path: Path) -> Path:
    """Exists while a repair replaces the database. It has the name to which the damaged file is moved."""
    return path.with_name(f"{path.name}.repair")


def _check_log(path: Path) -> None:
    """Stop before SQLite deletes the log of a missing or empty database, and the results in it."""
    log = path.with_name(f"{path.name}-wal")
    # Check the log before the database: another process that creates both fills the database first.
    log_has_results = log.exists() and log.stat().st_size > 0
    if log_has_results and not (path.exists() and path.stat().st_size > 0):
        raise Damage(f"the file is missing or empty, but its log {log.name} has content")


def _refuse_read_only(path: Path) -> None:
    for location in (path.parent, path):
        if location.exists() and not os.access(location, os.W_OK):
            raise StoreError(
                f"{location}: cannot write: it is read-only for this user. Its results can be read. To train, "
                f"copy the folder first: cp -r {path.parent} FOLDER"
            )


def _create(path: Path) -> None:
    """Create an empty file with the permissions of the umask: SQLite would create it with 0644.

    Never opens an existing file: closing it would drop the locks of this process's connections to it.
    """
    if not path.exists():
        with suppress(FileExistsError):  # another thread or process has created it
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
