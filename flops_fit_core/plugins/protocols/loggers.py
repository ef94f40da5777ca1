"""Loggers."""

from __future__ import annotations

from typing import Protocol

from flops_fit_core.records import Progress, RunResult, SweepPlan


class Logger(Protocol):
    """Shows or forwards what happens, in the driver. Used by one thread.

    What it raises is reported, never stops a sweep, and ends its part in it: it is closed. The sweep waits
    while it works, so what may be slow (a server) belongs in a thread of its own. Built where a sweep begins;
    what has to be closed again is opened by :meth:`started`.
    """

    def started(self, plan: SweepPlan) -> None:
        """Once, before all else. The study may have been begun before: what was kept then stays."""

    def progress(self, progress: Progress) -> None:
        """A few times a second for each run that trains, several of them at the same time. None need come: a run
        may be trained by another driver, or end before it is first looked at. After an interruption a run goes on
        from its last checkpoint, an earlier step than was seen."""

    def finished(self, result: RunResult) -> None:
        """After an attempt at a run has been stored, whatever came of it. Runs that were finished before the sweep
        began are not told again."""

    def close(self) -> None:
        """At the end, also after an error or Ctrl-C, where runs may be unfinished. Leaves no thread and no process
        behind. Idempotent."""
