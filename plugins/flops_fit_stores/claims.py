"""The claims of a store in a file: a journal of runs, owners and end times."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock

from flops_fit_stores.files import locked
from flops_fit_stores.journal import Journal

Line = tuple[str, str, float]
"""Run id, owner, and the end of the claim by this machine's clock, in Unix seconds. 0 after a release."""
_MIN_LINES_TO_COMPACT = 1000
"""The journal is compacted only if it has more lines."""


@dataclass(frozen=True)
class Claim:
    """The owner of a run and the end of the claim, in Unix seconds."""

    owner: str
    until: float


class Claims:
    """Claims in a file of lines. The last line of a run counts.

    They are not forced to disk: a power failure that loses them also ends the drivers on this machine. If several
    machines share the file, their clocks must agree within a few seconds.

    Args:
        path: The file, created by the first claim.
        lock: Lock of the writers.
    """

    def __init__(self, path: Path, lock: BaseFileLock) -> None:
        self._journal = Journal(path, "flops-fit claims", Line)
        self._lock = lock
        self._held: dict[str, Claim] = {}

    def take(self, run_id: str, owner: str, seconds: float) -> bool:
        """Claim a run for ``owner``. Returns False if another owner holds it."""
        with locked(self._lock, self._journal.path):
            self._refresh()
            now, held = time.time(), self._held.get(run_id)
            if held is not None and held.owner != owner and held.until > now:
                return False
            self._put(run_id, owner, now + seconds)
            return True

    def extend(self, run_id: str, owner: str, seconds: float) -> bool:
        """Extend the claim of ``owner``. Returns False if ``owner`` does not hold the run."""
        return self._change(run_id, owner, seconds)

    def drop(self, run_id: str, owner: str) -> None:
        """Release the run if ``owner`` holds it."""
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
        replaced, lines = self._journal.read_new()
        if replaced:
            self._held.clear()
        for line in lines:
            self._apply(*line)

    def _put(self, run_id: str, owner: str, until: float) -> None:
        self._journal.append((run_id, owner, until))
        self._apply(run_id, owner, until)
        if self._journal.lines > max(_MIN_LINES_TO_COMPACT, 4 * len(self._held)):
            self._journal.replace((run, claim.owner, claim.until) for run, claim in self._held.items())

    def _apply(self, run_id: str, owner: str, until: float) -> None:
        if until:
            self._held[run_id] = Claim(owner, until)
        else:
            self._held.pop(run_id, None)
