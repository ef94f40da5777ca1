"""The tables of ``results.sqlite`` and their migrations."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from flops_fit_stores.errors import Damage, newer_version, other_program
from flops_fit_stores.leases import UNKNOWN_SECONDS
from flops_fit_stores.records import COLUMNS
from flops_fit_stores.row_digest import row_digest
from flops_fit_stores.sqlite_library import Database
from flops_fit_stores.sqlite_transaction import write_transaction

APPLICATION_ID = 0x666C6F70
"""``flop`` in ASCII: marks the file as a flops-fit database."""


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
CHECKSUM_VERSION = 3
"""The first schema version whose rows have checksums."""


def migrate(db: Database, migrations: Migrations = MIGRATIONS) -> None:
    """Migrate a database to the latest schema in one transaction."""
    if _pragma(db.conn, "user_version") >= len(migrations):
        return
    with write_transaction(db):
        # Read the version again under the write lock: another process may have migrated meanwhile.
        version = _pragma(db.conn, "user_version")
        for step in migrations[version:]:
            step(db)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {max(len(migrations), version)}")


def has_checksums(connection: sqlite3.Connection) -> bool:
    """Whether the table of results has a column of checksums. Databases of schema version 1 have none."""
    columns = {name for _, name, *_ in connection.execute("PRAGMA table_info(results)")}
    return "sha256" in columns


def check_schema(path: Path, connection: sqlite3.Connection) -> bool:
    """Whether a database has the tables of a store; False if it is empty.

    Raises OtherFile for a database of another program or a newer schema, Damage for tables that differ.
    """
    owner, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if version == 0 and not tables and owner in (0, APPLICATION_ID):
        return False
    latest = len(MIGRATIONS)
    # Compare columns, not SQL texts: these depend on the version of sqlite-utils.
    columns = _columns(connection)
    if owner != APPLICATION_ID:
        if 0 < version <= latest and columns == _expected_columns(version):
            raise Damage("its application id is damaged")
        raise other_program(path, "a database of flops-fit")
    if version > latest:
        if (version ^ latest).bit_count() == 1 and columns == _expected_columns(latest):
            raise Damage("its schema version is damaged")
        raise newer_version(path, version, latest)
    if columns != _expected_columns(version):
        raise Damage(f"its tables are not those of schema version {version}")
    return True


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


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
