"""Result stores: ``sqlite`` (a database file, the default), ``json`` (one readable file) and ``postgres`` (a
database that several machines share).

Each store may be used by several processes at once, survives SIGKILL and power failure at any moment, and reports
damaged or foreign files without changing them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flops_fit_core.plugins import FileFinding, Options, ResultStore, RunsCode, StoreRepair, StoreSpec, hookimpl

Timeout = Annotated[float, Field(gt=0)]


class StoreOptions(Options):
    """Options of the stores in a file."""

    lock_timeout: Timeout = 60.0
    """Seconds to wait for another process that writes, before an error."""


class PostgresOptions(Options):
    """Tables in a PostgreSQL database. Drivers on several machines share a study without a shared file system."""

    url: Annotated[str | None, RunsCode()] = None
    """Connection string in libpq's format: ``postgresql://anna@db.example.org/scaling`` or ``host=...
    dbname=...``, without a password, because it is written to the study's folder. Unset: libpq's variables such as
    ``PGHOST`` and ``PGSERVICE`` apply."""
    url_variable: Annotated[str | None, RunsCode()] = None
    """Name of an environment variable that holds the ``url``. That url may contain a password."""
    study: Annotated[str, Field(min_length=1)] | None = None
    """Name of the study in the database. Drivers that share a study must use the same name. Unset: the name of the
    study's folder."""
    reconnect_timeout: Timeout = 60.0
    """Seconds to retry after the connection is lost, and to wait for another process's lock, before an error."""


def build_sqlite(options: StoreOptions, folder: Path) -> ResultStore:
    """Open ``results.sqlite`` in the study's folder."""
    from flops_fit_stores.sqlite import SqliteStore

    return SqliteStore(folder / "results.sqlite", options.lock_timeout)


def check_sqlite(options: StoreOptions, folder: Path) -> Sequence[FileFinding]:
    """The state of ``results.sqlite``, its log and its lower bound."""
    from flops_fit_stores.sqlite_repair import check

    return check(folder / "results.sqlite", options.lock_timeout)


def repair_sqlite(options: StoreOptions, folder: Path) -> StoreRepair:
    """Move a damaged ``results.sqlite`` aside and write a new one with every intact result."""
    from flops_fit_stores.sqlite_repair import repair

    return repair(folder / "results.sqlite", options.lock_timeout)


def build_json(options: StoreOptions, folder: Path) -> ResultStore:
    """Open ``results.json`` in the study's folder."""
    from flops_fit_stores.json_file import JsonStore

    return JsonStore(folder / "results.json", options.lock_timeout)


def check_json(options: StoreOptions, folder: Path) -> Sequence[FileFinding]:
    """The state of ``results.json``, its log and its lower bound."""
    from flops_fit_stores.json_repair import check

    return check(folder / "results.json")


def repair_json(options: StoreOptions, folder: Path) -> StoreRepair:
    """Copy a damaged ``results.json`` aside and write every intact result again."""
    from flops_fit_stores.json_repair import repair

    return repair(folder / "results.json", options.lock_timeout)


def build_postgres(options: PostgresOptions, folder: Path) -> ResultStore:
    """Connect to the database. Raises ConfigError for an invalid ``url``, StoreError if the connection fails."""
    from flops_fit_stores.postgres import PostgresStore, study_name
    from flops_fit_stores.server import Server, connection_string

    server = Server(connection_string(options.url, options.url_variable), options.reconnect_timeout)
    return PostgresStore(server, study_name(folder, options.study))


@hookimpl
def flops_fit_stores() -> Iterator[StoreSpec]:
    """Offer ``sqlite``, ``json`` and ``postgres``."""
    yield StoreSpec(
        name="sqlite",
        options=StoreOptions,
        build=build_sqlite,
        file="results.sqlite",
        check=check_sqlite,
        repair=repair_sqlite,
    )
    yield StoreSpec(
        name="json",
        options=StoreOptions,
        build=build_json,
        file="results.json",
        check=check_json,
        repair=repair_json,
    )
    yield StoreSpec(
        name="postgres",
        options=PostgresOptions,
        build=build_postgres,
        requires=("psycopg>=3.2",),
        extra="postgres",
    )
