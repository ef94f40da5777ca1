"""The base class of loggers."""

from __future__ import annotations

from flops_fit_core.records import Progress, RunResult, SweepPlan


class Logger:
    """Base class of loggers, which show or forward the events of a sweep. Each method does nothing by default.

    The driver calls a logger from one thread. Exceptions are reported and the logger is closed; the sweep
    continues. The sweep waits while a method runs, so slow work (a server) belongs in the logger's own thread.
    Build a logger without side effects: open files and connections in :meth:`started`.
    """

    def started(self, plan: SweepPlan) -> None:
        """Called once, before all other methods. Keep the output of earlier sweeps of the study."""

    def progress(self, progress: Progress) -> None:
        """Called a few times per second for each run that trains. Several runs may train at the same time.

        A run may have no progress, because another driver trains it or because it is short. An interrupted run
        continues from its last checkpoint, at an earlier step than that of the last call.
        """

    def finished(self, result: RunResult) -> None:
        """Called after an attempt at a run was stored, for every status. Not called for runs that had finished
        before the sweep started."""

    def close(self) -> None:
        """Called at the end, also after an error or Ctrl-C, when runs may be unfinished. Leave no thread and no
        process behind. May be called twice."""
