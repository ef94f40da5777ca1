"""Opening ``results.sqlite``: looking before touching, the schema and its migrations, errors in plain words."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from flops_fit_core import StoreError
from flops_fit_stores.checks import START_ANEW, make_folder

APPLICATION_ID = 0x666C6F70
"""``flop`` in the file's header: this database is ours."""
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
    "record": str,
}
_MAGIC = b"SQLite format 3\0"


def _first_tables(db: Database) -> None:
    results = {"added": int, **COLUMNS}
    claims = {"id": str, "owner": str, "until": float}
    db.execute(db.create_table_sql("results", results, pk="added", not_null={"id", "attempt", "status", "record"}))
    db.execute("CREATE UNIQUE INDEX results_id_attempt ON results (id, attempt)")
    db.execute(db.create_table_sql("claims", claims, pk="id", not_null={"owner", "until"}))


Migrations = Sequence[Callable[[Database], None]]
MIGRATIONS: Migrations = (_first_tables,)
"""Append only. Each brings a file from the schema before it to its own; ``PRAGMA user_version`` counts them.
They use ``db.execute`` only: before version 4, what changes a table in sqlite-utils ends the transaction."""


def open_database(path: Path, lock_timeout: float) -> Database:
    """Open the database, creating it where there is none, in write-ahead-log mode with ``synchronous=FULL``.

    Waits ``lock_timeout`` seconds for other processes. Raises StoreError, having changed nothing, for a file that is
    damaged, not ours or of a newer schema.
    """
    make_folder(path.parent)
    with explained(path, lock_timeout):
        _refuse_to_orphan_a_log(path)
        if path.exists() and path.stat().st_size > 0:
            _refuse_what_is_not_ours(path, lock_timeout)
        connection = sqlite3.connect(path, timeout=lock_timeout, isolation_level=None)
        try:
            _refuse_other_schemas(path, connection)
            db = Database(connection, execute_plugins=False)
            migrate(db)
            _log_ahead(db, lock_timeout)
        except BaseException:
            connection.close()
            raise
        return db


def migrate(db: Database, migrations: Migrations = MIGRATIONS) -> None:
    """Bring a database up to the latest schema, all of the way or not at all."""
    if _pragma(db.conn, "user_version") >= len(migrations):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        # Asked again now that nobody else can write: another process may have been faster.
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


def _refuse_to_orphan_a_log(path: Path) -> None:
    """SQLite deletes the log of a database that is missing or empty, and the results in it."""
    log = path.with_name(f"{path.name}-wal")
    # The log is looked at first: it only ever has something in it once the database has.
    log_has_results = log.exists() and log.stat().st_size > 0
    if log_has_results and not (path.exists() and path.stat().st_size > 0):
        raise StoreError(
            f"{path}: missing or empty, while {log.name} beside it still has results. Put the database that "
            f"belongs to it back. {START_ANEW}, and the log with it"
        )


def _refuse_what_is_not_ours(path: Path, lock_timeout: float) -> None:
    """Look at a database without writing: opening a damaged one as usual may make the damage worse."""
    if not path.is_file():
        raise StoreError(f"{path}: not a file, so no store can be there. {START_ANEW}")
    with path.open("rb") as file:
        beginning = file.read(len(_MAGIC))
    if beginning != _MAGIC and not path.with_name(f"{path.name}-journal").exists():
        raise StoreError(f"{path}: not an SQLite database, or its beginning is damaged. {START_ANEW}")
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=lock_timeout, isolation_level=None)) as connection:
        try:
            _refuse_other_schemas(path, connection)
            found = [text for (text,) in connection.execute("PRAGMA quick_check(1)")]
        except sqlite3.OperationalError as error:
            # Somebody was killed while creating it. A writer can roll that back, a reader cannot look.
            if not error.sqlite_errorname.startswith("SQLITE_READONLY"):
                raise
            return
    if found != ["ok"]:
        raise _damaged(path, found[0].split("\n")[-1])


def _refuse_other_schemas(path: Path, connection: sqlite3.Connection) -> None:
    owner, schema = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if owner != APPLICATION_ID and (owner or schema or tables):
        raise StoreError(f"{path}: an SQLite database of another program. {START_ANEW}")
    if schema > len(MIGRATIONS):
        raise StoreError(
            f"{path}: written by a newer flops-fit (schema {schema}; this one knows up to {len(MIGRATIONS)}): "
            f"pip install -U flops-fit"
        )


def _log_ahead(db: Database, lock_timeout: float) -> None:
    deadline = time.monotonic() + lock_timeout
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            # SQLite does not wait for a lock here, and others may be opening the file as well.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    db.execute("PRAGMA synchronous = FULL")


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path}: damaged ({what}). It was left as it is: put a copy back, or save what can be read with: "
        f"sqlite3 {path.name} .recover. {START_ANEW}"
    )


@contextmanager
def explained(path: Path, lock_timeout: float) -> Iterator[None]:
    """Turn what SQLite and the file system raise into StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise _damaged(path, str(error)) from None
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StoreError(
                f"{path}: another process has kept it locked for {lock_timeout:g} seconds. Wait for it, or stop it"
            ) from None
        raise StoreError(f"{path}: {error}") from None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from None
