"""Results of workers that outlive their driver."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flops_fit_core.errors import ConfigError, DamagedFile
from flops_fit_core.plugins.checked_json import read_record, write_checked
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
    """The file, and why it is damaged."""


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
        write_checked(self._file(result.id, token), _Content(token=token, result=result))

    def get(self, run_id: str, token: str | None = None) -> RunResult | None:
        """The result of a run under this token, or else its first result under any token, or else None."""
        preferred = self._file(run_id, token)
        entries = [entry for entry in self._entries(run_id) if entry.result is not None]
        entries.sort(key=lambda entry: entry.file != preferred)
        return entries[0].result if entries else None

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
            try:
                yield self._read(file)
            except ConfigError as error:
                if file.exists():  # otherwise another driver has stored and deleted it
                    yield OutboxEntry(file, None, damage=self._report(file, str(error)))

    def _read(self, file: Path) -> OutboxEntry:
        """Raises DamagedFile or ConfigError."""
        try:
            content = read_record(_Content, file)
        except DamagedFile as damage:
            try:
                return OutboxEntry(file, read_record(RunResult, file))  # from an earlier version
            except DamagedFile:
                raise damage from None
        return OutboxEntry(file, content.result, content.token)

    def _report(self, file: Path, damage: str) -> str:
        if file not in self._reported:
            self._reported.add(file)
            logger.warning("%s. It is not used, and its run is trained again; you can delete the file", damage)
        return damage

    def _file(self, run_id: str, token: str | None) -> Path:
        if token is None:
            return self.path / f"{run_id}.json"
        name = token if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", token) else content_hash(token)
        return self.path / f"{run_id}.{name}.json"
