"""The claims of a store in a file: a journal of runs and leases."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from flops_fit_core import StoreError
from flops_fit_stores import lease_clock
from flops_fit_stores.files import locked
from flops_fit_stores.journal import Journal
from flops_fit_stores.leases import UNKNOWN_SECONDS, Lease, LeaseObserver

VERSION = 2
_MIN_LINES_TO_COMPACT = 1000
"""The journal is compacted only if it has more lines."""
_LEASE = TypeAdapter(Lease)
_EARLIER_HEADER = b'{"format":"flops-fit claims","version":1,"turn":'
_EARLIER_LINE = TypeAdapter(tuple[str, str, float])
"""A line of version 1: run id, owner, and the end by the clock of the machine. 0 after a release."""

logger = logging.getLogger("flops_fit")


class Claims:
    """Claims in a file of lines. The last line of a run counts; a line without a lease is a release.

    They are not forced to disk: a power failure that loses them also ends the drivers on this machine.

    A last line without a newline is of a killed writer or a power failure: it is dropped at once. Any other
    damaged line may be the claim of a live driver, perhaps on another machine, so no run is claimed for the usual
    duration of a lease. Then the damaged file is renamed, a new file has the intact claims, and a warning is
    logged. No result is lost.

    Args:
        path: The file, created by the first claim.
        lock: Lock of the writers.
    """

    def __init__(self, path: Path, lock: BaseFileLock) -> None:
        self._journal = Journal(path, "flops-fit claims", VERSION)
        self._lock = lock
        self._held: dict[str, Lease] = {}
        self._observer = LeaseObserver()
        self._damage: str | None = None
        self._blocked_until = 0.0

    def take(self, run_id: str, owner: str, seconds: float) -> str | None:
        """Claim a run for ``owner``. Returns the token, or None if another owner holds it."""
        with locked(self._lock, self._journal.path):
            self.refresh()
            if self._damage is not None and not self._rebuild():
                return None
            held = self._held.get(run_id)
            if held is not None and held.owner != owner and not self._observer.has_ended(run_id, held):
                return None
            lease = Lease.new(owner, seconds)
            self._put(run_id, lease)
            return lease.token

    def extend(self, run_id: str, owner: str, seconds: float) -> bool:
        """Extend the claim of ``owner``. Returns False if ``owner`` does not hold the run."""
        with locked(self._lock, self._journal.path):
            self.refresh()
            held = self._held.get(run_id)
            if held is None or held.owner != owner:
                return False
            self._put(run_id, held.renewed(seconds))
            return True

    def drop(self, run_id: str, owner: str) -> None:
        """Release the run if ``owner`` holds it."""
        with locked(self._lock, self._journal.path):
            self.refresh()
            held = self._held.get(run_id)
            if held is not None and held.owner == owner:
                self._put(run_id, None)

    def is_valid(self, run_id: str, token: str) -> bool:
        """Whether the run's claim has this token. The caller holds the lock and has called :meth:`refresh`."""
        held = self._held.get(run_id)
        return held is not None and held.token == token

    def end(self, run_id: str) -> None:
        """End the run's claim, of any owner. The caller holds the lock and has called :meth:`refresh`."""
        if run_id in self._held:
            self._put(run_id, None)

    def refresh(self) -> None:
        """Read what other processes have written. The caller holds the lock."""
        new = self._journal.read_new()
        if new is None:
            self._journal.replace()
            self._held.clear()
            self._damage = None
            return
        if not self._journal.id and self._convert_earlier_version():
            return
        if new.rewritten:
            self._held.clear()
            self._damage = None
        damage = [
            *new.damage,
            *(f"a line of run {entry.get('run')}" for entry in new.entries if not self._apply(entry)),
        ]
        if damage and self._damage is None:
            self._damage = damage[0]
            self._blocked_until = lease_clock.now() + UNKNOWN_SECONDS

    def _put(self, run_id: str, lease: Lease | None) -> None:
        entry = _entry(run_id, lease)
        self._journal.append(entry)
        self._apply(entry)
        if self._damage is None and self._journal.lines > max(_MIN_LINES_TO_COMPACT, 4 * len(self._held)):
            self._write_all()

    def _apply(self, entry: dict[str, Any]) -> bool:
        """Apply a line. Returns False if it is invalid."""
        run_id, lease = entry.get("run"), entry.get("lease")
        if not isinstance(run_id, str):
            return False
        try:
            if lease is None:
                self._held.pop(run_id, None)
            else:
                self._held[run_id] = _LEASE.validate_python(lease)
        except ValidationError:
            return False
        return True

    def _write_all(self) -> None:
        self._journal.replace(_entry(run_id, lease) for run_id, lease in self._held.items())

    def _rebuild(self) -> bool:
        """Replace a damaged file by the intact claims. Returns False until the unknown claims have ended."""
        if lease_clock.now() < self._blocked_until:
            return False
        path = self._journal.path
        aside = path.with_name(f"{path.name}.damaged")
        try:
            path.replace(aside)
        except OSError as error:
            raise StoreError(f"{path}: damaged, and cannot be renamed: {error.strerror}") from None
        self._write_all()
        logger.warning("%s: damaged (%s). A new file has the intact claims: no result is lost", path, self._damage)
        self._damage = None
        return True

    def _convert_earlier_version(self) -> bool:
        """Rewrite a file of version 1. Its drivers have ended, so the claims are observed until they end."""
        try:
            with self._journal.path.open("rb") as file:
                header = file.readline()
                if not header.startswith(_EARLIER_HEADER):
                    return False
                lines = file.read().split(b"\n")[:-1]
        except OSError as error:
            raise StoreError(f"{self._journal.path}: {error.strerror}") from None
        self._held.clear()
        for line in lines:
            try:
                run_id, owner, until = _EARLIER_LINE.validate_python(from_json(line))
            except ValueError:
                continue
            self._held.pop(run_id, None)
            if until:
                self._held[run_id] = Lease.unknown(owner)
        self._write_all()
        self._damage = None
        return True


def _entry(run_id: str, lease: Lease | None) -> dict[str, Any]:
    return {"run": run_id, "lease": None if lease is None else asdict(lease)}
