"""The other drivers of a study, for the live view of a driver: their results and the progress of their runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flops_fit_core.errors import StoreError
from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.records import Progress, RunResult
from flops_fit_core.study.heartbeat import Driver, drivers

READ_SECONDS = 2.0
"""The shortest time between two reads; drivers write their progress every 2 seconds."""
SHARE_OF_READING = 0.05
"""The largest share of the driver's time in which it reads."""


@dataclass(frozen=True)
class OtherDrivers:
    """The other drivers of a study at a moment."""

    results: Sequence[RunResult]
    """The latest result of every run in the store, by any driver."""
    running: Sequence[Progress]
    """The runs that the other drivers train."""
    drivers: Sequence[Driver]
    """Empty once they have ended."""


class OtherDriversReader:
    """Reads the other drivers of a study. Without other drivers, it only lists their folder.

    Args:
        study: The study's folder.
        owner: The owner of this driver's claims.
    """

    def __init__(self, study: Path, owner: str) -> None:
        self._study = study
        self._owner = owner
        self._due = 0.0
        self._present = False
        """Whether there were other drivers at the last read. Their last results are read after their end."""

    def read_if_due(self, store: ResultStore, *, last: bool = False) -> OtherDrivers | None:
        """The present state; None if it is not due, or if there are no other drivers.

        ``last`` reads in any case: the sweep ends, and a driver may have come and gone since the last read. A
        store that cannot be read now is read again later.
        """
        started = time.monotonic()
        if started < self._due and not last:
            return None
        others = [driver for driver in drivers(self._study) if driver.owner != self._owner]
        was_present, self._present = self._present, bool(others)
        try:
            if not (others or was_present or last):
                return None
            results = list(store.results())
        except StoreError:
            self._present = True
            return None
        finally:
            now = time.monotonic()
            self._due = now + max(READ_SECONDS, (now - started) / SHARE_OF_READING)
        return OtherDrivers(results, current_progress(others, results), others)


def current_progress(active: Sequence[Driver], results: Sequence[RunResult]) -> list[Progress]:
    """The progress of the runs that are in training, by the files of the drivers."""
    latest = {result.id: result for result in results}
    return [
        item
        for driver in active
        if driver.is_recent
        for item in driver.running
        if not _is_older(item, latest.get(item.run))
    ]


def _is_older(progress: Progress, result: RunResult | None) -> bool:
    """Whether a result is at least as new as the progress of its run. The driver removes it a moment later."""
    return result is not None and (result.is_finished or result.attempt > progress.attempt)


def count_workers(active: Sequence[Driver]) -> int | None:
    """Jobs that all drivers train at the same time; None if it is unknown for a driver."""
    counts = [driver.workers for driver in active if driver.is_recent]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
