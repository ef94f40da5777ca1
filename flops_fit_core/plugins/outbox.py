"""Results of workers that outlive their driver."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import RunResult


class Outbox:
    """Results that no driver has stored yet, from workers that continue after their driver has ended.

    A worker writes ``outbox/<run id>.json``. The driver that stores the result deletes the file.
    """

    def __init__(self, study: Path) -> None:
        self.path = study / "outbox"

    def put(self, result: RunResult) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file(result.id), result.model_dump_json())

    def get(self, run_id: str) -> RunResult | None:
        """Raises ConfigError for a damaged file."""
        return self._read(self._file(run_id))

    def results(self) -> list[RunResult]:
        """Raises ConfigError for a damaged file."""
        results = [self._read(file) for file in sorted(self.path.glob("[!.]*.json"))]
        return [result for result in results if result is not None]

    def _read(self, file: Path) -> RunResult | None:
        """None if the file is missing: another driver may have stored and deleted it."""
        try:
            return RunResult.model_validate_json(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise ConfigError(f"{file} is damaged: delete it to train its run again\n{error}") from None

    def __len__(self) -> int:
        return len(list(self.path.glob("[!.]*.json")))

    def remove(self, run_id: str) -> None:
        """Delete the result of a run. Does nothing if there is no result."""
        self._file(run_id).unlink(missing_ok=True)

    def _file(self, run_id: str) -> Path:
        return self.path / f"{run_id}.json"
