"""The ``parquet`` store: the folder ``results.parquet``, which pandas, polars and DuckDB read as one table.

Its parts have a row an attempt: the columns people ask for, and ``record``, the whole RunResult as JSON, which
alone is read back. An ``add`` appends a line to ``_log.jsonl``, which readers of Parquet leave alone; once there
are some hundreds of lines, and whenever a store is closed, they are folded into the parts. Who adds or folds holds
the lock ``results.parquet.lock``; who reads needs none.

A fold writes the parts first and the log afterwards, and each of both at once: after a kill between the two, lines
of the log stand in the parts as well, and are found there by the next fold. So every attempt stands once in the
parts and in the order in which it was added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic_core import from_json, to_json

from flops_fit_core import RunResult, StoreError
from flops_fit_stores.checks import START_ANEW, checked, from_record, make_folder, uncollected
from flops_fit_stores.claims import Claims
from flops_fit_stores.files import locked
from flops_fit_stores.journal import Journal
from flops_fit_stores.parts import Key, Parts

Line = tuple[str, int, dict[str, Any]]
"""An attempt in the log: run, attempt, record."""


class ParquetStore:
    """A ``ResultStore`` in a folder of Parquet files. One thread; any number of processes.

    What was read is kept in memory as text and not read again: about as much as the records have in JSON. Every
    method raises StoreError where the files cannot be used.

    Args:
        path: The folder, created where there is none.
        wait: Seconds to wait for another process that is writing.
        part_rows: Attempts in one part. Lines of the log are folded once there is a quarter of that.
    """

    def __init__(self, path: Path, wait: float, part_rows: int) -> None:
        make_folder(path.parent)
        self.path, self._part_rows = path, part_rows
        self._lock = FileLock(f"{path}.lock", timeout=wait)
        self._journal = Journal(path / "_log.jsonl", "flops-fit results", Line)
        self._parts = Parts(path)
        self._claims = Claims(path / "_claims.jsonl", self._lock)
        self._log: dict[Key, str] = {}
        self._runs: dict[str, dict[int, str]] = {}
        self._create()
        self._refresh()

    def add(self, result: RunResult) -> None:
        """Keep one attempt, replacing the same attempt at the same run. On disk when it returns.

        Raises ValueError for a number that is not finite.
        """
        record = checked(result).model_dump_json()
        with locked(self._lock, self.path):
            self._refresh()
            if self._runs.get(result.id, {}).get(result.attempt) == record:
                return
            self._journal.append((result.id, result.attempt, from_json(record)))
            self._note((result.id, result.attempt), record)
            if len(self._log) >= self._part_rows / 4:
                self._fold()

    def get(self, run_id: str) -> RunResult | None:
        """The latest attempt, or None."""
        self._refresh()
        found = self._runs.get(run_id)
        return from_record(found[max(found)], self.path, run_id, max(found)) if found else None

    def results(self) -> list[RunResult]:
        """The latest attempt at every run, in the order in which the runs were first added."""
        self._refresh()
        with uncollected():
            return [
                from_record(found[max(found)], self.path, run_id, max(found))
                for run_id, found in self._runs.items()
            ]

    def attempts(self, run_id: str) -> list[RunResult]:
        """Every attempt, first to last."""
        self._refresh()
        found = sorted(self._runs.get(run_id, {}).items())
        return [from_record(record, self.path, run_id, attempt) for attempt, record in found]

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        """Take the right to train a run for that long; False while somebody else holds it."""
        return self._claims.take(run_id, owner, seconds)

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        """Hold a claim for that long from now; False where it has been lost to somebody else."""
        return self._claims.extend(run_id, owner, seconds)

    def release(self, run_id: str, owner: str) -> None:
        """Give a claim back. Nothing happens where ``owner`` does not hold it."""
        self._claims.drop(run_id, owner)

    def close(self) -> None:
        """Fold the log into the parts, unless somebody else is writing or these files may only be read: there it
        is as safe as in the parts."""
        if not self._log:
            return
        self._lock.timeout = 0
        with suppress(StoreError), locked(self._lock, self.path):
            self._refresh()
            self._fold()

    # ------------------------------------------------------------------ files

    def _create(self) -> None:
        if self._journal.path.exists():
            return
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path}: not a folder, so no store can be there. {START_ANEW}")
        with locked(self._lock, self.path):
            if self._journal.path.exists():
                return
            if any(self.path.glob("*.parquet")):
                raise StoreError(
                    f"{self._journal.path}: missing, and the newest results with it, while there are parts. Put "
                    f"it back. {START_ANEW}"
                )
            make_folder(self.path)
            self._journal.replace(parts=0)

    def _refresh(self) -> None:
        """Read what is new. The log comes first: what was folded meanwhile is then in the parts for certain."""
        anew, lines = self._journal.news()
        if anew:
            self._parts.read(at_least=self._journal.about.get("parts", 0))
            self._log, self._runs = {}, {}
            for rows in self._parts.rows.values():
                for (run_id, attempt), record in rows.items():
                    self._runs.setdefault(run_id, {})[attempt] = record
        for run_id, attempt, record in lines:
            self._note((run_id, attempt), to_json(record).decode())

    def _note(self, key: Key, record: str) -> None:
        self._log[key] = record
        self._runs.setdefault(key[0], {})[key[1]] = record

    def _fold(self) -> None:
        """Bring the log's lines into the parts, and empty it. Lock held, all read."""
        self._parts.read(at_least=self._journal.about.get("parts", 0))  # a killed fold left what the log still has
        left = dict(self._log)
        for number, rows in sorted(self._parts.rows.items()):
            there = {key: left.pop(key) for key in rows.keys() & left.keys()}
            if any(rows[key] != record for key, record in there.items()):
                self._parts.write(number, there)
        for number, some in self._rooms(left):
            self._parts.write(number, some)
        self._journal.replace(parts=len(self._parts.rows))
        self._log = {}

    def _rooms(self, rows: dict[Key, str]) -> Iterator[tuple[int, dict[Key, str]]]:
        """Which part takes which of the new rows: the last one until it is full, then further ones."""
        new = iter(rows.items())
        for number in count(max(self._parts.rows, default=1)):
            room = max(0, self._part_rows - len(self._parts.rows.get(number, ())))
            some = dict(islice(new, room))
            if some:
                yield number, some
            elif room:
                return
