"""The ``postgres`` store: tables in a PostgreSQL database that drivers on several machines share.

Table ``flops_fit.results`` has one row per attempt: columns for queries, and ``record``, the complete RunResult as
JSON. The store reads only ``record``. Table ``flops_fit.claims`` has one row per claimed run: its owner,
token and end by the server's clock. Both tables hold many studies, by name.

Claims end by the server's time of day, ``clock_timestamp()``. If an administrator sets that clock forward, claims
end early, and tokens keep every result that counts. If the clock is set back, claims of dead drivers last longer.

Durability of ``add`` follows the server's ``synchronous_commit``: by default it survives power failure.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore, settle_result
from flops_fit_stores.records import COLUMNS, gc_paused, parse_record, to_columns, validated
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
_LOCK_RUN = "SELECT pg_advisory_xact_lock(hashtextextended(%(study)s || ' ' || %(id)s, 0))"
"""Serialises the transactions that add results of one run, which may have no row to lock."""
_CLAIM_OF_RUN = "SELECT token FROM flops_fit.claims WHERE study = %(study)s AND id = %(id)s FOR UPDATE"
"""Locks the claim: no driver takes it over before the result is stored."""
_END_CLAIM = "DELETE FROM flops_fit.claims WHERE study = %(study)s AND id = %(id)s"
_CLAIM = """
    INSERT INTO flops_fit.claims AS held (study, id, owner, token, ends)
    VALUES (%(study)s, %(id)s, %(owner)s, %(token)s, clock_timestamp() + make_interval(secs => %(seconds)s))
    ON CONFLICT (study, id) DO UPDATE SET owner = excluded.owner, token = excluded.token, ends = excluded.ends
    WHERE held.owner = excluded.owner OR held.ends <= clock_timestamp()
"""
_RENEW = """
    UPDATE flops_fit.claims SET ends = clock_timestamp() + make_interval(secs => %(seconds)s)
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

    Every method is a transaction, and is repeated if the connection is lost meanwhile. Every method raises
    StoreError if the database cannot be used.

    Args:
        server: The connection.
        study: Name of the study in the database.
    """

    fenced = True
    shared_between_machines = True

    def __init__(self, server: Server, study: str) -> None:
        self._server, self._study = server, study
        self._location = f"{server.name}, study {study!r}"

    def add(self, result: RunResult, token: str | None = None) -> RunResult:
        result = validated(result)
        if token is None:
            self._execute(_ADD, **_row(result))
            return result
        # If the connection is lost before the answer to COMMIT, the transaction is repeated: settle_result then
        # recognises a result that was committed.
        return self._server.retry(lambda connection: self._add(connection, result, token))

    def _add(self, connection: Any, result: RunResult, token: str) -> RunResult:
        """Add a result in one transaction. READ COMMITTED: each statement reads what was committed before it."""
        run = {"study": self._study, "id": result.id}
        with connection.transaction():
            connection.execute(_LOCK_RUN, run)
            claim = connection.execute(_CLAIM_OF_RUN, run).fetchone()
            holds_claim = claim is not None and claim[0] == token
            attempts = self._parse(connection.execute(_ATTEMPTS, run).fetchall())
            stored = settle_result(result, attempts, holds_claim=holds_claim)
            if stored not in attempts:
                connection.execute(_ADD, {"study": self._study, **_row(stored)})
                if stored.is_finished and not holds_claim and not stored.superseded:
                    connection.execute(_END_CLAIM, run)
        return stored

    def all_attempts(self) -> list[RunResult]:
        return self._query(_ALL_ATTEMPTS)

    def attempts(self, run_id: str) -> list[RunResult]:
        """All attempts at a run, by number. Uses an index."""
        return self._query(_ATTEMPTS, id=run_id)

    def claim(self, run_id: str, owner: str, seconds: float) -> str | bool:
        token = secrets.token_hex(16)
        return token if self._execute(_CLAIM, id=run_id, owner=owner, token=token, seconds=seconds) else False

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        return self._execute(_RENEW, id=run_id, owner=owner, seconds=seconds)

    def release(self, run_id: str, owner: str) -> None:
        self._execute(_RELEASE, id=run_id, owner=owner)

    def close(self) -> None:
        self._server.close()

    def _query(self, sql: str, **values: Any) -> list[RunResult]:
        parameters = {"study": self._study, **values}
        rows = self._server.retry(lambda connection: connection.execute(sql, parameters).fetchall())
        return self._parse(rows)

    def _parse(self, rows: Iterable[tuple[str, int, str]]) -> list[RunResult]:
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
