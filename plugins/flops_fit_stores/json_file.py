"""The ``json`` store: ``results.json``, one file that you can read, diff and mail.

Each change reads the current file under the lock ``results.json.lock``, writes a new file and renames it, so the
file is complete at every moment. ``results.claims.jsonl`` holds the claims.

Every ``add`` writes all results again: about 30 ms of CPU and 3 MB to disk at 1,000 results, ten times that at
10,000 (tests/benchmarks/stores.py). For more than a thousand runs, use another store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore
from flops_fit_stores.checks import gc_paused, invalid_record, make_folder, validated
from flops_fit_stores.claims import Claims
from flops_fit_stores.document import Document


class _Shape(BaseModel):
    """Fields that this store uses. Results are validated completely when they are read."""

    model_config = ConfigDict(strict=True)


class _Entry(_Shape):
    id: str
    attempt: int


class _Results(_Shape):
    results: list[_Entry]
    writes: int


class JsonStore(ResultStore):
    """Results in one JSON file. One thread; any number of processes.

    Every method raises StoreError if the file cannot be used.

    Args:
        path: The file, created if it does not exist.
        lock_timeout: Seconds to wait for another process that writes.
    """

    def __init__(self, path: Path, lock_timeout: float) -> None:
        make_folder(path.parent)
        lock = FileLock(f"{path}.lock", timeout=lock_timeout)
        self.path = path
        self._file = Document(path, "flops-fit results", _Results, lock)
        self._file.create(results=[])
        self._file.read()
        self._claims = Claims(path.with_suffix(".claims.jsonl"), lock)

    def add(self, result: RunResult) -> None:
        """As in the base class. The result is on disk when this returns."""
        entry = _entry(validated(result))

        def replace_or_append(data: dict[str, Any]) -> bool:
            entries = data["results"]
            for index, existing in enumerate(entries):
                if (existing["id"], existing["attempt"]) == (entry["id"], entry["attempt"]):
                    entries[index] = entry
                    return True
            entries.append(entry)
            return True

        self._file.change(replace_or_append)

    def all_attempts(self) -> list[RunResult]:
        with gc_paused():
            return [self._result(entry) for entry in self._file.read()["results"]]

    def attempts(self, run_id: str) -> list[RunResult]:
        """All attempts at a run, by number. Validates only these entries."""
        entries = [entry for entry in self._file.read()["results"] if entry["id"] == run_id]
        return [self._result(entry) for entry in sorted(entries, key=lambda entry: int(entry["attempt"]))]

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        return self._claims.take(run_id, owner, seconds)

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        return self._claims.extend(run_id, owner, seconds)

    def release(self, run_id: str, owner: str) -> None:
        self._claims.drop(run_id, owner)

    def _result(self, entry: dict[str, Any]) -> RunResult:
        try:
            return RunResult.model_validate({key: value for key, value in entry.items() if key != "id"})
        except ValidationError as error:
            raise invalid_record(self.path, entry["id"], entry["attempt"], error) from None


def _entry(result: RunResult) -> dict[str, Any]:
    """The JSON object of a result. The fields that readers look for come first."""
    first = {"id": result.id, "status": result.status, "attempt": result.attempt, "loss": result.loss}
    return {**first, **result.model_dump(mode="json", exclude={"run"}), "run": result.run.model_dump(mode="json")}
