"""Results of workers that outlive their driver."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flops_fit_core.plugins.checked_json import add_checksum, describe_damage, read_checked
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import RunResult, content_hash
from flops_fit_core.records.base import Record

logger = logging.getLogger("flops_fit")


class _Content(Record):
    token: str | None
    result: RunResult


@dataclass(frozen=True)
class OutboxEntry:
    """A file of the outbox."""

    file: Path
    result: RunResult | None
    """None for a damaged file."""
    token: str | None = None
    """Token of the claim under which the run was trained; None if the store is not fenced."""
    damage: str = ""
    """Why the file is damaged."""


class Outbox:
    """Results that no driver has stored yet, from workers that continue after their driver has ended.

    A worker writes ``outbox/<run id>.<token>.json``, with the token of its job's claim of the run, or
    ``outbox/<run id>.json`` if the store is not fenced. Two workers of one run never replace each other's result.
    The driver that stores a result deletes its file. A damaged file is logged once per object, skipped and kept.
    """

    def __init__(self, study: Path) -> None:
        self.path = study / "outbox"
        self._reported: set[Path] = set()

    def put(self, result: RunResult, token: str | None = None) -> None:
        """Write a result. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = _Content(token=token, result=result).model_dump_json()
        write_atomically(self._file(result.id, token), add_checksum(content))

    def get(self, run_id: str, token: str | None = None) -> RunResult | None:
        """The result of a run under this token, or else its first result under any token, or else None."""
        preferred = self._file(run_id, token)
        results = [entry.result for entry in self._entries(run_id) if entry.result and entry.file == preferred]
        results += [entry.result for entry in self._entries(run_id) if entry.result]
        return results[0] if results else None

    def entries(self) -> list[OutboxEntry]:
        """Every file, damaged files included."""
        return list(self._entries())

    def results(self) -> list[RunResult]:
        """The results in all intact files."""
        return [entry.result for entry in self._entries() if entry.result is not None]

    def __len__(self) -> int:
        return len(self.results())

    def remove(self, run_id: str, token: str | None = None) -> None:
        """Delete the result of a run under this token. Does nothing if there is no result."""
        self._file(run_id, token).unlink(missing_ok=True)

    def remove_result(self, result: RunResult) -> None:
        """Delete a result under any token. Does nothing if there is none."""
        for entry in self._entries(result.id):
            if entry.result == result:
                entry.file.unlink(missing_ok=True)

    def _entries(self, run_id: str = "") -> Iterator[OutboxEntry]:
        pattern = f"{run_id}*.json" if run_id else "[!.]*.json"
        for file in sorted(self.path.glob(pattern)):
            if run_id and file.name.partition(".")[0] != run_id:
                continue
            with contextlib.suppress(FileNotFoundError):  # another driver may have stored and deleted it
                yield self._read(file)

    def _read(self, file: Path) -> OutboxEntry:
        try:
            try:
                content = read_checked(_Content, file)
            except ValueError:
                result, token = read_checked(RunResult, file), None  # from an earlier version
            else:
                result, token = content.result, content.token
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            return OutboxEntry(file, None, damage=self._report(file, describe_damage(error)))
        return OutboxEntry(file, result, token)

    def _report(self, file: Path, damage: str) -> str:
        if file not in self._reported:
            self._reported.add(file)
            logger.warning(
                "%s is damaged and not used: %s. Its run is trained again; you can delete the file",
                file,
                damage,
            )
        return damage

    def _file(self, run_id: str, token: str | None) -> Path:
        if token is None:
            return self.path / f"{run_id}.json"
        name = token if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", token) else content_hash(token)
        return self.path / f"{run_id}.{name}.json"
