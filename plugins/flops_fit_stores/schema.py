"""The tables of the ``postgres`` store, and how they came about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flops_fit_core import StoreError

NAME = "flops_fit"
"""The schema, in PostgreSQL's sense, that is ours."""
_LOCK = 0x666C6F70
"""``flop``: the advisory lock under which tables are made."""

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


MIGRATIONS: Migrations = (_first_tables,)
"""Append only. Each brings a database from the schema before it to its own; ``flops_fit.version`` counts them."""


def migrate(connection: Any, migrations: Migrations = MIGRATIONS) -> None:
    """Bring a database up to the latest schema, all of the way or not at all.

    Where it is up to date this needs no right to create anything. Raises StoreError for a newer schema.
    """
    if version(connection) < len(migrations):
        with connection.transaction():
            # Asked again now that nobody else comes in between: another process may have been faster.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            there = version(connection)
            if not there:
                # IF NOT EXISTS would ask for the right to make one, where an administrator has made it for us.
                if not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [NAME]).fetchone():
                    connection.execute("CREATE SCHEMA flops_fit")
                connection.execute("CREATE TABLE flops_fit.version (number integer NOT NULL)")
                connection.execute("INSERT INTO flops_fit.version VALUES (0)")
            for step in migrations[there:]:
                step(connection)
            connection.execute("UPDATE flops_fit.version SET number = %s", [max(there, len(migrations))])
    if (there := version(connection)) > len(migrations):
        raise StoreError(
            f"PostgreSQL database {connection.info.dbname!r} was written by a newer flops-fit (schema {there}; "
            f"this one knows up to {len(migrations)}): pip install -U flops-fit"
        )


def version(connection: Any) -> int:
    """Of the tables; 0 where there are none."""
    asked = "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'flops_fit' AND tablename = 'version')"
    (there,) = connection.execute(asked).fetchone()  # to_regclass answers from a cache, which may be late
    return int(connection.execute("SELECT number FROM flops_fit.version").fetchone()[0]) if there else 0
