"""The ``json`` store: ``results.json``, one file that people can read, diff and mail.

Each write goes to a new file that then takes the old one's place, so the file is whole at every moment; each
is made from what is on disk at that moment, under the lock ``results.json.lock``. ``results.claims.jsonl``
says who is training what, and until when.

Every ``add`` writes all results again: about 30 ms of CPU and 3 MB to the disk at 1,000 results, ten times that
at 10,000 (tests/benchmarks/stores.py). For more than a thousand runs use another store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore
from flops_fit_stores.checks import checked, make_folder, uncollected, unreadable
from flops_fit_stores.claims import Claims
from flops_fit_stores.document import Document


class _Shape(BaseModel):
    """What the code here relies on; the rest of a result is looked at when it is asked for."""

    model_config = ConfigDict(strict=True)


class _Entry(_Shape):
    id: str
    attempt: int


class _Results(_Shape):
    results: list[_Entry]
    writes: int


class JsonStore(ResultStore):
    """Results in one JSON file. One thread; any number of processes.

    Every method raises StoreError where the file cannot be used.

    Args:
        path: The file, created where there is none.
        lock_timeout: Seconds to wait for another process that is writing.
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
        """Keep one attempt, replacing the same attempt at the same run. On disk when it returns.

        Raises ValueError for a number that is not finite.
        """
        entry = _entry(checked(result))

        def put(data: dict[str, Any]) -> bool:
            entries = data["results"]
            for index, other in enumerate(entries):
                if (other["id"], other["attempt"]) == (entry["id"], entry["attempt"]):
                    entries[index] = entry
                    return True
            entries.append(entry)
            return True

        self._file.change(put)

    def all_attempts(self) -> list[RunResult]:
        """Every attempt at every run, in the order in which they were added."""
        with uncollected():
            return [self._result(entry) for entry in self._file.read()["results"]]

    def attempts(self, run_id: str) -> list[RunResult]:
        """Every attempt at a run, by its number. Only its own entries are validated."""
        entries = [entry for entry in self._file.read()["results"] if entry["id"] == run_id]
        return [self._result(entry) for entry in sorted(entries, key=lambda entry: int(entry["attempt"]))]

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        """Take the right to train a run for that long; False while somebody else holds it."""
        return self._claims.take(run_id, owner, seconds)

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        """Hold a claim for that long from now; False where it has been lost to somebody else."""
        return self._claims.extend(run_id, owner, seconds)

    def release(self, run_id: str, owner: str) -> None:
        """Give a claim back. Nothing happens where ``owner`` does not hold it."""
        self._claims.drop(run_id, owner)

    def _result(self, entry: dict[str, Any]) -> RunResult:
        try:
            return RunResult.model_validate({key: value for key, value in entry.items() if key != "id"})
        except ValidationError as error:
            raise unreadable(self.path, entry["id"], entry["attempt"], error) from None


def _entry(result: RunResult) -> dict[str, Any]:
    """A result as it stands in the file: what people look for comes first."""
    first = {"id": result.id, "status": result.status, "attempt": result.attempt, "loss": result.loss}
    return {**first, **result.model_dump(mode="json", exclude={"run"}), "run": result.run.model_dump(mode="json")}
