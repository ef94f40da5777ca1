"""The ``postgres`` store: tables in a PostgreSQL database, which drivers on several machines share.

Table ``flops_fit.results`` has a row an attempt: the columns people ask for, and ``record``, the whole RunResult
as JSON, which alone is read back. Table ``flops_fit.claims`` says who is training what, and until when by the
server's clock. Both keep many studies, by their name.

An ``add`` that has returned is as safe as the server's ``synchronous_commit`` makes it: by default from a power
failure.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore
from flops_fit_stores.checks import checked, flat, from_record, uncollected
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


def study_name(folder: Path, given: str | None) -> str:
    """Under which name a study's results are kept: the one that was given, or the folder's.

    The probes of ``flops-fit tune``, in the folder ``tune`` of a study, are kept apart from its results.
    """
    if folder.name == "tune":
        return f"{given or folder.absolute().parent.name}/tune"
    return given or folder.absolute().name


class PostgresStore(ResultStore):
    """Results in a PostgreSQL database. One thread; any number of processes on any number of machines.

    Every statement is complete in itself, and repeated where the connection is lost meanwhile. Every method raises
    StoreError where the database cannot be used.

    Args:
        server: The connection.
        study: Whose results these are.
    """

    def __init__(self, server: Server, study: str) -> None:
        self._server, self._study = server, study
        self._where = f"{server.name}, study {study!r}"

    def add(self, result: RunResult) -> None:
        """Keep one attempt, replacing the same attempt at the same run. On the server's disk when it returns.

        Raises ValueError for a number that is not finite.
        """
        self._changes(_ADD, **_row(checked(result)))

    def all_attempts(self) -> list[RunResult]:
        """Every attempt at every run, in the order in which they were added."""
        return self._query(_ALL_ATTEMPTS)

    def attempts(self, run_id: str) -> list[RunResult]:
        """Every attempt at a run, by its number. An index finds them."""
        return self._query(_ATTEMPTS, id=run_id)

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        """Take the right to train a run for that long; False while somebody else holds it."""
        return self._changes(_CLAIM, id=run_id, owner=owner, seconds=seconds)

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        """Hold a claim for that long from now; False where it has been lost to somebody else."""
        return self._changes(_RENEW, id=run_id, owner=owner, seconds=seconds)

    def release(self, run_id: str, owner: str) -> None:
        """Give a claim back. Nothing happens where ``owner`` does not hold it."""
        self._changes(_RELEASE, id=run_id, owner=owner)

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    def _query(self, sql: str, **values: Any) -> list[RunResult]:
        rows = self._server.do(lambda connection: connection.execute(sql, self._all(values)).fetchall())
        with uncollected():
            return [from_record(record, self._where, run_id, attempt) for run_id, attempt, record in rows]

    def _changes(self, sql: str, **values: Any) -> bool:
        """Whether one statement, atomic between processes, changed anything."""
        return self._server.do(lambda connection: bool(connection.execute(sql, self._all(values)).rowcount > 0))

    def _all(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"study": self._study, **values}


def _row(result: RunResult) -> dict[str, Any]:
    """The record in ASCII, whatever the database's encoding: what is beyond that, and the character 0, which
    PostgreSQL refuses as text, are escapes."""
    return {**flat(result), "record": json.dumps(result.model_dump(mode="json"), allow_nan=False)}
