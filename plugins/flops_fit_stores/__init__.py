"""Where results are kept: ``sqlite`` (a database, the default), ``json`` (a file that people can read) and
``postgres`` (a database that several machines share).

All may be used by several processes at once, survive SIGKILL and power failure at any moment, and refuse what is
damaged or not theirs instead of touching it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flops_fit_core.plugins import Options, ResultStore, StoreSpec, hookimpl

Timeout = Annotated[float, Field(gt=0)]


class StoreOptions(Options):
    """Options of the stores that are one file."""

    lock_timeout: Timeout = 60.0
    """Seconds to wait while another process is writing, before giving up with an error."""


class PostgresOptions(Options):
    """Tables in a PostgreSQL database: drivers on several machines share a study without a common file system."""

    url: str | None = None
    """Where the database is, as libpq writes it: ``postgresql://anna@db.example.org/scaling``, or ``host=...
    dbname=...``. Without a password: the study's folder keeps it. Unset, ``PGHOST``, ``PGSERVICE`` and so on say
    it."""
    url_variable: str | None = None
    """Name of an environment variable that has the ``url``, which may then have a password."""
    study: Annotated[str, Field(min_length=1)] | None = None
    """Under which name the database keeps the results; unset, that of the study's folder. Drivers that share a
    study need the same one."""
    reconnect_timeout: Timeout = 60.0
    """Seconds to try again when the connection is lost, before giving up with an error."""


def build_sqlite(options: StoreOptions, folder: Path) -> ResultStore:
    """Open ``results.sqlite`` in the study's folder."""
    from flops_fit_stores.sqlite import SqliteStore

    return SqliteStore(folder / "results.sqlite", options.lock_timeout)


def build_json(options: StoreOptions, folder: Path) -> ResultStore:
    """Open ``results.json`` in the study's folder."""
    from flops_fit_stores.json_file import JsonStore

    return JsonStore(folder / "results.json", options.lock_timeout)


def build_postgres(options: PostgresOptions, folder: Path) -> ResultStore:
    """Connect to the database. Raises ConfigError for a ``url`` that cannot be used, StoreError for a server."""
    from flops_fit_stores.postgres import PostgresStore, study_name
    from flops_fit_stores.server import Server, connection_string

    server = Server(connection_string(options.url, options.url_variable), options.reconnect_timeout)
    return PostgresStore(server, study_name(folder, options.study))


@hookimpl
def flops_fit_stores() -> Iterator[StoreSpec]:
    """Offer ``sqlite``, ``json`` and ``postgres``."""
    yield StoreSpec(name="sqlite", options=StoreOptions, build=build_sqlite, file="results.sqlite")
    yield StoreSpec(name="json", options=StoreOptions, build=build_json, file="results.json")
    yield StoreSpec(
        name="postgres",
        options=PostgresOptions,
        build=build_postgres,
        requires=("psycopg>=3.2",),
        extra="postgres",
    )
