"""The ``json`` store: ``results.json``, one file that you can read, diff and mail.

While a driver runs, the newest results are in ``results.log.jsonl``: each ``add`` appends a line. The log is
merged into ``results.json`` when it is larger than that file, and when the driver ends. ``results.json.count`` has
a lower bound of the number of results, ``results.claims.jsonl`` has the claims. Every record has a checksum.

Writers hold the lock ``results.json.lock``. Readers need no lock. Adding n results writes O(n) bytes.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from flops_fit_core import RunResult, StoreError
from flops_fit_core.plugins import ResultStore, settle_result
from flops_fit_stores.checksums import FIELD
from flops_fit_stores.claims import Claims
from flops_fit_stores.document import Entry
from flops_fit_stores.files import locked, make_folder
from flops_fit_stores.json_records import JsonRecords, record_of
from flops_fit_stores.records import gc_paused, invalid_record, validated

logger = logging.getLogger("flops_fit")


class JsonStore(ResultStore):
    """Results in one JSON file and its log. One thread; any number of processes.

    Every method raises StoreError if the files cannot be used.

    Args:
        path: The file, created if it does not exist.
        lock_timeout: Seconds to wait for another process that writes.
    """

    fenced = True

    def __init__(self, path: Path, lock_timeout: float) -> None:
        make_folder(path.parent)
        self.path = path
        self._lock = FileLock(f"{path}.lock", timeout=lock_timeout)
        self._records = JsonRecords(path)
        if not path.exists():
            with locked(self._lock, path):
                self._records.create()
        self._records.refresh()
        self._claims = Claims(path.with_suffix(".claims.jsonl"), self._lock)
        self._writes = False
        """Whether this object has claimed a run or added a result."""

    def add(self, result: RunResult, token: str | None = None) -> RunResult:
        """As in the base class. The result is on disk when this returns."""
        result = validated(result)
        self._writes = True
        with locked(self._lock, self.path):
            self._records.refresh()
            if token is None:
                self._put(result, is_stored=record_of(result) == self._present(result))
                return result
            self._claims.refresh()
            holds_claim = self._claims.is_valid(result.id, token)
            attempts = self._attempts(result.id)
            stored = settle_result(result, attempts, holds_claim=holds_claim)
            is_stored = stored in attempts
            self._put(stored, is_stored=is_stored)
            if not is_stored and stored.is_finished and not holds_claim and not stored.superseded:
                self._claims.end(result.id)
            return stored

    def _put(self, result: RunResult, *, is_stored: bool) -> None:
        if is_stored:
            self._records.confirm()
        else:
            self._records.put(record_of(result))

    def all_attempts(self) -> list[RunResult]:
        self._records.refresh()
        with gc_paused():
            return [self._result(entry) for entry in self._records.entries]

    def attempts(self, run_id: str) -> list[RunResult]:
        """All attempts at a run, by number. Validates only these records."""
        self._records.refresh()
        return self._attempts(run_id)

    def claim(self, run_id: str, owner: str, seconds: float) -> str | bool:
        self._writes = True
        return self._claims.take(run_id, owner, seconds) or False

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        return self._claims.extend(run_id, owner, seconds)

    def release(self, run_id: str, owner: str) -> None:
        self._claims.drop(run_id, owner)

    def close(self) -> None:
        """Merge the log into ``results.json``, if this object has written. A failure loses nothing."""
        if not self._writes:
            return
        try:
            with locked(self._lock, self.path):
                self._records.refresh()
                self._records.fold(last=True)
        except (StoreError, OSError) as error:
            logger.warning("results are still in the log of %s: %s", self.path.name, error)

    def _attempts(self, run_id: str) -> list[RunResult]:
        places = self._records.places.get(run_id, {})
        return [self._result(self._records.entries[place]) for _, place in sorted(places.items())]

    def _present(self, result: RunResult) -> Entry | None:
        place = self._records.places.get(result.id, {}).get(result.attempt)
        if place is None:
            return None
        return {name: value for name, value in self._records.entries[place].items() if name != FIELD}

    def _result(self, entry: dict[str, Any]) -> RunResult:
        try:
            return RunResult.model_validate({name: entry[name] for name in entry if name not in ("id", FIELD)})
        except ValidationError as error:
            raise invalid_record(self.path, entry["id"], entry["attempt"], error) from None
