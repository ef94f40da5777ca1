"""The tables of the ``postgres`` store and their migrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flops_fit_core import StoreError

NAME = "flops_fit"
"""Name of the store's PostgreSQL schema."""
_LOCK = 0x666C6F70
"""Key of the advisory lock for migrations: ``flop`` in ASCII."""

Migrations = Sequence[Callable[[Any], None]]


def _first_tables(connection: Any) -> None:
    connection.execute(
        """
        CREATE TABLE flops_fit.results (
            added bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            study text NOT NULL,
            id text NOT NULL,
            attempt integer NOT NULL,
            status text NOT NULL,
            model text,
            params numeric,
            tokens numeric,
            flops double precision,
            loss double precision,
            seed numeric,
            budget double precision,
            seconds double precision,
            finished timestamptz,
            record json NOT NULL,
            UNIQUE (study, id, attempt)
        )
        """
    )
    connection.execute(
        """
        CREATE TABLE flops_fit.claims (
            study text NOT NULL,
            id text NOT NULL,
            owner text NOT NULL,
            until timestamptz NOT NULL,
            PRIMARY KEY (study, id)
        )
        """
    )


def _claim_tokens(connection: Any) -> None:
    connection.execute("ALTER TABLE flops_fit.results ADD COLUMN superseded boolean NOT NULL DEFAULT false")
    connection.execute("ALTER TABLE flops_fit.claims ADD COLUMN token text NOT NULL DEFAULT ''")
    # A driver of an earlier version takes over claims without a new token. The new name makes it stop.
    connection.execute("ALTER TABLE flops_fit.claims RENAME COLUMN until TO ends")


MIGRATIONS: Migrations = (_first_tables, _claim_tokens)
"""Migrations in order; only append. Each leads to the next schema version, stored in ``flops_fit.version``."""


def migrate(connection: Any, migrations: Migrations = MIGRATIONS) -> None:
    """Migrate a database to the latest schema in one transaction.

    If the schema is up to date, no privilege to create objects is needed. Raises StoreError for a newer schema.
    """
    if version(connection) < len(migrations):
        with connection.transaction():
            # Read the version again under the lock: another process may have migrated meanwhile.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            current = version(connection)
            if not current:
                # CREATE SCHEMA IF NOT EXISTS needs the privilege even if an administrator has created the schema.
                if not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [NAME]).fetchone():
                    connection.execute("CREATE SCHEMA flops_fit")
                connection.execute("CREATE TABLE flops_fit.version (number integer NOT NULL)")
                connection.execute("INSERT INTO flops_fit.version VALUES (0)")
            for step in migrations[current:]:
                step(connection)
            connection.execute("UPDATE flops_fit.version SET number = %s", [max(current, len(migrations))])
    if (current := version(connection)) > len(migrations):
        raise StoreError(
            f"PostgreSQL database {connection.info.dbname!r} was written by a newer flops-fit: its schema is "
            f"version {current}, the latest supported here is {len(migrations)}: pip install -U flops-fit"
        )


def version(connection: Any) -> int:
    """Version of the schema; 0 if there are no tables."""
    # Not to_regclass: it reads a cache that may be outdated.
    sql = "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'flops_fit' AND tablename = 'version')"
    (exists,) = connection.execute(sql).fetchone()
    return int(connection.execute("SELECT number FROM flops_fit.version").fetchone()[0]) if exists else 0
