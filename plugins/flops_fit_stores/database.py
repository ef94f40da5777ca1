"""Open ``results.sqlite``: check the file before any write, migrate the schema, and explain errors."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from flops_fit_core import StoreError
from flops_fit_stores.checks import START_NEW, make_folder
from flops_fit_stores.leases import UNKNOWN_SECONDS

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


Migrations = Sequence[Callable[[Database], None]]
MIGRATIONS: Migrations = (_first_tables, _claim_tokens)
"""Migrations in order; only append. Each leads to the next schema version, stored in ``PRAGMA user_version``.
They use ``db.execute`` only: before version 4, sqlite-utils commits when it changes a table."""


def open_database(path: Path, lock_timeout: float) -> Database:
    """Open or create the database, in write-ahead-log mode with ``synchronous=FULL``.

    Waits ``lock_timeout`` seconds for other processes. Raises StoreError, without any change, for a file that is
    damaged, foreign or of a newer schema.
    """
    make_folder(path.parent)
    with explain_errors(path, lock_timeout):
        _check_log(path)
        if path.exists() and path.stat().st_size > 0:
            _check_file(path, lock_timeout)
        connection = sqlite3.connect(path, timeout=lock_timeout, isolation_level=None)
        try:
            _check_schema(path, connection)
            db = Database(connection, execute_plugins=False)
            migrate(db)
            _enable_write_ahead_log(db, lock_timeout)
        except BaseException:
            connection.close()
            raise
        return db


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


def _check_log(path: Path) -> None:
    """Stop before SQLite deletes the log of a missing or empty database, and the results in it."""
    log = path.with_name(f"{path.name}-wal")
    # Check the log before the database: another process that creates both fills the database first.
    log_has_results = log.exists() and log.stat().st_size > 0
    if log_has_results and not (path.exists() and path.stat().st_size > 0):
        raise StoreError(
            f"{path}: missing or empty, but its log {log.name} has results. Put the database of this log back. "
            f"{START_NEW}, and the log with it"
        )


def _check_file(path: Path, lock_timeout: float) -> None:
    """Check a database without writing to it: opening a damaged file for writing may damage it further."""
    if not path.is_file():
        raise StoreError(f"{path}: not a file. {START_NEW}")
    # Never open the file in any other way: closing it would drop the POSIX locks of this process's other
    # connections, and another process would delete the log that they use (sqlite.org/howtocorrupt.html, 2.2).
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=lock_timeout, isolation_level=None)) as connection:
        try:
            _check_schema(path, connection)
            problems = [text for (text,) in connection.execute("PRAGMA quick_check(1)")]
        except sqlite3.OperationalError as error:
            # A process was killed while it created the database. Only a writer can roll that back.
            if not error.sqlite_errorname.startswith("SQLITE_READONLY"):
                raise
            return
    if problems != ["ok"]:
        raise _damaged(path, problems[0].split("\n")[-1])


def _check_schema(path: Path, connection: sqlite3.Connection) -> None:
    owner, schema = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if owner != APPLICATION_ID and (owner or schema or tables):
        raise StoreError(f"{path}: an SQLite database of another program. {START_NEW}")
    if schema > len(MIGRATIONS):
        raise StoreError(
            f"{path}: written by a newer flops-fit: its schema is version {schema}, the latest supported here is "
            f"{len(MIGRATIONS)}: pip install -U flops-fit"
        )


def _enable_write_ahead_log(db: Database, lock_timeout: float) -> None:
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


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path}: damaged ({reason}). The file is unchanged: put a copy back, or recover readable rows with: "
        f"sqlite3 {path.name} .recover. {START_NEW}"
    )


@contextmanager
def explain_errors(path: Path, lock_timeout: float) -> Iterator[None]:
    """Convert errors of SQLite and the file system to StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        if name.startswith("SQLITE_NOTADB"):
            raise StoreError(f"{path}: not an SQLite database, or its header is damaged. {START_NEW}") from None
        if name.startswith("SQLITE_CORRUPT"):
            raise _damaged(path, str(error)) from None
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StoreError(
                f"{path}: locked by another process for {lock_timeout:g} seconds. Wait for that process, "
                f"or stop it"
            ) from None
        raise StoreError(f"{path}: {error}") from None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from None
