"""Who is training what, and until when: a journal beside the results of the stores that are files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock

from flops_fit_stores.files import locked
from flops_fit_stores.journal import Journal

Line = tuple[str, str, float]
"""Run, owner, and until when by this machine's clock, in Unix seconds; released: 0."""
_MANY = 1000
"""Lines from which on the journal is written anew when most of them have been overtaken."""


@dataclass(frozen=True)
class Claim:
    """Who holds a run until when."""

    owner: str
    until: float


class Claims:
    """Claims in a file, each of whose lines overtakes the earlier ones on its run.

    They are not forced to the disk: a power failure that loses them ends the drivers on this machine as well.
    Where machines share the file, their clocks have to agree to within a few seconds.

    Args:
        path: The file, created by the first claim.
        lock: Held by whoever writes.
    """

    def __init__(self, path: Path, lock: BaseFileLock) -> None:
        self._journal = Journal(path, "flops-fit claims", Line)
        self._lock = lock
        self._held: dict[str, Claim] = {}

    def take(self, run_id: str, owner: str, seconds: float) -> bool:
        """Whether ``owner`` holds the run now, for that long."""
        with locked(self._lock, self._journal.path):
            self._refresh()
            now, held = time.time(), self._held.get(run_id)
            if held is not None and held.owner != owner and held.until > now:
                return False
            self._put(run_id, owner, now + seconds)
            return True

    def extend(self, run_id: str, owner: str, seconds: float) -> bool:
        """Whether ``owner`` still held the run, and does now for that long."""
        return self._change(run_id, owner, seconds)

    def drop(self, run_id: str, owner: str) -> None:
        """Free the run where ``owner`` holds it."""
        self._change(run_id, owner, None)

    def _change(self, run_id: str, owner: str, seconds: float | None) -> bool:
        with locked(self._lock, self._journal.path):
            self._refresh()
            held = self._held.get(run_id)
            if held is None or held.owner != owner:
                return False
            self._put(run_id, owner, 0 if seconds is None else time.time() + seconds)
            return True

    def _refresh(self) -> None:
        if not self._journal.path.exists():
            self._journal.replace()
            self._held.clear()
        anew, lines = self._journal.news()
        if anew:
            self._held.clear()
        for line in lines:
            self._note(*line)

    def _put(self, run_id: str, owner: str, until: float) -> None:
        self._journal.append((run_id, owner, until))
        self._note(run_id, owner, until)
        if self._journal.lines > max(_MANY, 4 * len(self._held)):
            self._journal.replace((run, one.owner, one.until) for run, one in self._held.items())

    def _note(self, run_id: str, owner: str, until: float) -> None:
        if until:
            self._held[run_id] = Claim(owner, until)
        else:
            self._held.pop(run_id, None)
