"""The ``postgres`` store: tables in a PostgreSQL database that drivers on several machines share.

Table ``flops_fit.results`` has one row per attempt: columns for queries, and ``record``, the complete RunResult as
JSON. The store reads only ``record``. Table ``flops_fit.claims`` has the owner of each claimed run and the end of
the claim by the server's clock. Both tables hold many studies, by name.

Durability of ``add`` follows the server's ``synchronous_commit``: by default it survives power failure.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore
from flops_fit_stores.checks import gc_paused, parse_record, to_columns, validated
from flops_fit_stores.database import COLUMNS
from flops_fit_stores.server import Server

_ADD = (
    f"INSERT INTO flops_fit.results (study, {', '.join(COLUMNS)}) "  # noqa: S608
    f"VALUES (%(study)s, {', '.join(f'%({name})s' for name in COLUMNS)}) ON CONFLICT (study, id, attempt) "
    f"DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS)}"
)
_ALL_ATTEMPTS = """
    SELECT id, attempt, record::text FROM flops_fit.results WHERE study = %(study)s ORDER BY added
"""
_ATTEMPTS = """
    SELECT id, attempt, record::text FROM flops_fit.results WHERE study = %(study)s AND id = %(id)s ORDER BY
    attempt
"""
_CLAIM = """
    INSERT INTO flops_fit.claims AS held (study, id, owner, until)
    VALUES (%(study)s, %(id)s, %(owner)s, clock_timestamp() + make_interval(secs => %(seconds)s))
    ON CONFLICT (study, id) DO UPDATE SET owner = excluded.owner, until = excluded.until
    WHERE held.owner = excluded.owner OR held.until <= clock_timestamp()
"""
_RENEW = """
    UPDATE flops_fit.claims SET until = clock_timestamp() + make_interval(secs => %(seconds)s)
    WHERE study = %(study)s AND id = %(id)s AND owner = %(owner)s
"""
_RELEASE = "DELETE FROM flops_fit.claims WHERE study = %(study)s AND id = %(id)s AND owner = %(owner)s"


def study_name(folder: Path, name: str | None) -> str:
    """The study's name in the database: ``name``, or else the folder's name.

    The probes of ``flops-fit tune``, in the study's folder ``tune``, have another name than the study.
    """
    if folder.name == "tune":
        return f"{name or folder.absolute().parent.name}/tune"
    return name or folder.absolute().name


class PostgresStore(ResultStore):
    """Results in a PostgreSQL database. One thread; any number of processes on any number of machines.

    Every statement is a transaction, and is repeated if the connection is lost meanwhile. Every method raises
    StoreError if the database cannot be used.

    Args:
        server: The connection.
        study: Name of the study in the database.
    """

    def __init__(self, server: Server, study: str) -> None:
        self._server, self._study = server, study
        self._location = f"{server.name}, study {study!r}"

    def add(self, result: RunResult) -> None:
        self._execute(_ADD, **_row(validated(result)))

    def all_attempts(self) -> list[RunResult]:
        return self._query(_ALL_ATTEMPTS)

    def attempts(self, run_id: str) -> list[RunResult]:
        """All attempts at a run, by number. Uses an index."""
        return self._query(_ATTEMPTS, id=run_id)

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        return self._execute(_CLAIM, id=run_id, owner=owner, seconds=seconds)

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        return self._execute(_RENEW, id=run_id, owner=owner, seconds=seconds)

    def release(self, run_id: str, owner: str) -> None:
        self._execute(_RELEASE, id=run_id, owner=owner)

    def close(self) -> None:
        self._server.close()

    def _query(self, sql: str, **values: Any) -> list[RunResult]:
        parameters = {"study": self._study, **values}
        rows = self._server.retry(lambda connection: connection.execute(sql, parameters).fetchall())
        with gc_paused():
            return [parse_record(record, self._location, run_id, attempt) for run_id, attempt, record in rows]

    def _execute(self, sql: str, **values: Any) -> bool:
        """Execute one statement, which is atomic between processes. Returns whether it changed a row."""
        parameters = {"study": self._study, **values}
        return self._server.retry(lambda connection: bool(connection.execute(sql, parameters).rowcount > 0))


def _row(result: RunResult) -> dict[str, Any]:
    """The row of a result. The record is ASCII with escapes: it fits every database encoding, and PostgreSQL does
    not accept the character 0 in a text."""
    return {**to_columns(result), "record": json.dumps(result.model_dump(mode="json"), allow_nan=False)}
