"""Open ``results.sqlite``: check it before it is used, migrate the schema, and explain errors."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from flops_fit_core import StoreError
from flops_fit_stores.checks import START_NEW, make_folder
from flops_fit_stores.file_systems import is_network
from flops_fit_stores.leases import UNKNOWN_SECONDS
from flops_fit_stores.lower_bound import LowerBound
from flops_fit_stores.row_digest import row_digest
from flops_fit_stores.sqlite_checks import Damage, check_content, check_count, has_checksums, is_damage
from flops_fit_stores.sqlite_reader import Reader

APPLICATION_ID = 0x666C6F70
"""``flop`` in ASCII: marks the file as a flops-fit database."""
COLUMNS: dict[str, Any] = {
    "id": str,
    "attempt": int,
    "status": str,
    "model": str,
    "params": int,
    "tokens": int,
    "flops": float,
    "loss": float,
    "seed": int,
    "budget": float,
    "seconds": float,
    "finished": str,
    "superseded": int,
    "record": str,
}
_RECORDS = "SELECT id, attempt, CAST(record AS BLOB), {checksum} FROM results "


def _first_tables(db: Database) -> None:
    results = {"added": int, **{name: COLUMNS[name] for name in COLUMNS if name != "superseded"}}
    claims = {"id": str, "owner": str, "until": float}
    db.execute(db.create_table_sql("results", results, pk="added", not_null={"id", "attempt", "status", "record"}))
    db.execute("CREATE UNIQUE INDEX results_id_attempt ON results (id, attempt)")
    db.execute(db.create_table_sql("claims", claims, pk="id", not_null={"owner", "until"}))


def _claim_tokens(db: Database) -> None:
    """Claims with tokens. The end of an earlier claim is unknown, so drivers observe it for the usual duration."""
    claims = {"id": str, "owner": str, "token": str, "seconds": float, "beat": int, "machine": str, "end": float}
    db.execute("ALTER TABLE results ADD COLUMN superseded INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE claims RENAME TO earlier_claims")
    db.execute(db.create_table_sql("claims", claims, pk="id", not_null=set(claims)))
    db.execute("INSERT INTO claims SELECT id, owner, '', ?, 0, '', 0 FROM earlier_claims", [UNKNOWN_SECONDS])
    db.execute("DROP TABLE earlier_claims")


def _checksums(db: Database) -> None:
    """Add a checksum to each row. Existing records are intact if they name the run of their row."""
    db.execute("ALTER TABLE results ADD COLUMN sha256 TEXT")
    rows = db.execute("SELECT added, id, attempt, CAST(record AS BLOB) FROM results").fetchall()
    for added, run_id, attempt, record in rows:
        digest = row_digest(run_id, attempt, record)
        db.execute("UPDATE results SET sha256 = ? WHERE added = ?", (digest, added))


Migrations = Sequence[Callable[[Database], None]]
MIGRATIONS: Migrations = (_first_tables, _claim_tokens, _checksums)
"""Migrations in order; only append. Each leads to the next schema version, stored in ``PRAGMA user_version``.
They use ``db.execute`` only: before version 4, sqlite-utils commits when it changes a table."""


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
        with self.explain():
            try:
                self._open_reader()
            except NotADirectoryError:
                make_folder(path.parent)  # raises a StoreError that names the folder

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
            db.execute("BEGIN IMMEDIATE")
            try:
                (count,) = db.execute("SELECT COUNT(*) FROM results").fetchone()
                self.bound.raise_to(count)
            finally:
                db.execute("ROLLBACK")
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
        bound = self._read_bound()
        _check_log(self.path)
        if not self.path.exists() or self.path.stat().st_size == 0:
            if bound:
                state = "empty" if self.path.exists() else "missing"
                raise damaged(self.path, f"the file is {state}, and {bound} results were stored")
            return
        if not self.path.is_file():
            raise StoreError(f"{self.path}: not a file. {START_NEW}")
        self._reader = Reader(self.path, self.lock_timeout, self._check)

    def _check(self, connection: sqlite3.Connection) -> None:
        bound = self._read_bound()  # before the rows are counted: another process may add results
        self._has_tables = check_schema(self.path, connection)
        self._checksum = "sha256" if has_checksums(connection) else "NULL"
        if self._has_tables:
            check_content(connection, bound)
        else:
            check_count(0, bound)

    def _read_bound(self) -> int | None:
        try:
            return self.bound.read()
        except ValueError as error:
            raise DamagedStore(_describe_damage(self.bound.path, str(error), self.path.parent)) from None

    def _open_writer(self) -> None:
        make_folder(self.path.parent)
        _refuse_read_only(self.path)
        if self._reader is None:
            self._open_reader()
        if self._reader is not None:
            self._reader.close()  # a change of the journal mode needs the database alone
            self._reader = None
        if not self.path.exists():
            # SQLite would create it with 0644, whatever the umask allows to the group.
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666))
        connection = sqlite3.connect(self.path, timeout=self.lock_timeout, isolation_level=None)
        try:
            check_schema(self.path, connection)
            db = Database(connection, execute_plugins=False)
            migrate(db)
            _set_journal_mode(db, self.path, self.lock_timeout)
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


def migrate(db: Database, migrations: Migrations = MIGRATIONS) -> None:
    """Migrate a database to the latest schema in one transaction."""
    if _pragma(db.conn, "user_version") >= len(migrations):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        # Read the version again under the write lock: another process may have migrated meanwhile.
        version = _pragma(db.conn, "user_version")
        for step in migrations[version:]:
            step(db)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {max(len(migrations), version)}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _refuse_unfinished_repair(path: Path) -> None:
    if repair_marker(path).exists():
        raise StoreError(
            f"{path}: its repair was interrupted. No result is lost. To complete it: flops-fit store repair "
            f"{path.parent}"
        )


def repair_marker(path: Path) -> Path:
    """Exists while a repair replaces the database. It has the name to which the damaged file is moved."""
    return path.with_name(f"{path.name}.repair")


def _check_log(path: Path) -> None:
    """Stop before SQLite deletes the log of a missing or empty database, and the results in it."""
    log = path.with_name(f"{path.name}-wal")
    # Check the log before the database: another process that creates both fills the database first.
    log_has_results = log.exists() and log.stat().st_size > 0
    if log_has_results and not (path.exists() and path.stat().st_size > 0):
        raise damaged(path, f"the file is missing or empty, but its log {log.name} has content")


def check_schema(path: Path, connection: sqlite3.Connection) -> bool:
    """Whether a database has the tables of a store; False if it is empty.

    Raises StoreError for a database of another program or a newer schema, Damage for tables that differ.
    """
    owner, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if owner != APPLICATION_ID and (owner or version or tables):
        raise StoreError(f"{path}: an SQLite database of another program. {START_NEW}")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path}: written by a newer flops-fit: its schema is version {version}, the latest supported here is "
            f"{len(MIGRATIONS)}: pip install -U flops-fit"
        )
    if version == 0 and not tables:
        return False
    # Compare columns, not SQL texts: these depend on the version of sqlite-utils.
    if _columns(connection) != _expected_columns(version):
        raise Damage(f"its tables are not those of schema version {version}")
    return True


def _columns(connection: sqlite3.Connection) -> list[Any]:
    """Name, type, NOT NULL and key of each column of our tables, and the columns of the unique index."""
    tables = ("results", "claims")
    columns = [row[1:] for table in tables for row in connection.execute(f"PRAGMA table_info({table})")]
    return [*columns, *(row[2] for row in connection.execute("PRAGMA index_info(results_id_attempt)"))]


@cache
def _expected_columns(version: int) -> list[Any]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(Database(connection, execute_plugins=False), MIGRATIONS[:version])
        return _columns(connection)


def _refuse_read_only(path: Path) -> None:
    for location in (path.parent, path):
        if location.exists() and not os.access(location, os.W_OK):
            raise StoreError(
                f"{location}: cannot write: it is read-only for this user. Its results can be read. To train, "
                f"copy the folder first: cp -r {path.parent} FOLDER"
            )


def _set_journal_mode(db: Database, path: Path, lock_timeout: float) -> None:
    """Write-ahead log on a local disk. A rollback journal on a network file system, which has no shared memory
    for the index of a log; EXTRA also syncs the folder after the journal is deleted."""
    if is_network(path.parent):
        _leave_log_mode(db, path)
        db.execute("PRAGMA synchronous = EXTRA")
        return
    deadline = time.monotonic() + lock_timeout
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            # SQLite does not wait for a lock here, and other processes may open the file at the same time.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    db.execute("PRAGMA synchronous = FULL")


def _leave_log_mode(db: Database, path: Path) -> None:
    """Change a database to a rollback journal. Raises StoreError if another process has it open with a log."""
    # An exclusive lock keeps the index of the log in this process instead of in shared memory.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    try:
        mode = db.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
    except sqlite3.OperationalError as error:
        if not error.sqlite_errorname.startswith("SQLITE_BUSY"):
            raise
        mode = "wal"
    db.execute("PRAGMA locking_mode = NORMAL")
    if mode != "delete":
        raise StoreError(
            f"{path}: on a network file system with a write-ahead log, and another process has it open: end that "
            f"process and run again"
        )
    _pragma(db.conn, "user_version")  # the lock is released by the next read


class DamagedStore(StoreError):
    """The database or its lower bound is damaged."""


def damaged(path: Path, reason: str) -> DamagedStore:
    """The error for a damaged database, with the number of intact results."""
    from flops_fit_stores.salvage import salvage

    try:
        intact = len(salvage(path).rows)
    except (OSError, StoreError):
        intact = 0
    return DamagedStore(_describe_damage(path, f"{reason}; intact results: {intact}", path.parent))


def _describe_damage(path: Path, reason: str, folder: Path) -> str:
    return (
        f"{path}: damaged: {reason}. Nothing was changed. To list the damage: flops-fit store check {folder}. To "
        f"keep every intact result and move the damaged file aside: flops-fit store repair {folder}"
    )


@contextmanager
def explain_errors(path: Path, lock_timeout: float) -> Iterator[None]:
    """Convert errors of SQLite and the file system to StoreError."""
    try:
        yield
    except Damage as error:
        raise damaged(path, str(error)) from None
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        if name.startswith("SQLITE_NOTADB"):
            raise damaged(path, "not an SQLite database, or its header is damaged") from None
        if is_damage(error):
            raise damaged(path, str(error)) from None
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StoreError(
                f"{path}: locked by another process for {lock_timeout:g} seconds. Wait for that process, "
                f"or stop it"
            ) from None
        raise StoreError(f"{path}: {error}") from None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from None
