"""Driving a sweep: executors, stores, loggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from flops_fit_core.errors import ConfigError
from flops_fit_core.records import Job, Progress, RunResult, SweepPlan


@dataclass(frozen=True)
class JobEnded:
    """Exactly one a submitted job, after all of its results."""

    job: str
    reason: str | None = None
    """None where the worker came to its end; otherwise what happened to it, such as ``killed by SIGKILL``."""


class Executor(Protocol):
    """Runs jobs somewhere. Used by one thread of one driver.

    Every submitted job ends in exactly one :class:`JobEnded`, whatever happens to its worker. Results that
    a worker gave before it died are delivered. Jobs may be submitted while events are being read.
    """

    @property
    def capacity(self) -> int:
        """Jobs that run at the same time; it may change while a cluster grows."""

    def submit(self, job: Job) -> None: ...
    def events(self, timeout: float) -> Iterator[Progress | RunResult | JobEnded]:
        """Events until none has come for ``timeout`` seconds, or until no submitted job is left."""

    def cancel(self, job_id: str) -> None:
        """Stop a job; its JobEnded still comes."""

    def close(self) -> None:
        """Stop everything within seconds and leave no process behind. Idempotent."""


@dataclass(frozen=True)
class ExecutorContext:
    """What an executor needs to start workers."""

    folder: Path
    """The study's folder."""
    plugins: str
    """JSON for :func:`flops_fit_core.training.work`: which modules and disabled names make the registry."""
    live: Mapping[str, object]
    """Plugins that are Python objects, by name: what ``find_optimal`` was given."""
    slots: Sequence[Mapping[str, str]]
    """Environment variables of each place where one job can run: a core, or a GPU."""

    @cached_property
    def objects(self) -> bytes | None:
        """``live`` in one cloudpickle blob, for workers that this driver starts; never written to disk.

        Raises ConfigError for objects that cannot leave this process.
        """
        import cloudpickle

        if not self.live:
            return None
        try:
            blob: bytes = cloudpickle.dumps(dict(self.live))
        except Exception as error:
            raise ConfigError(
                f"the model, dataset or loss cannot be sent to a worker process ({type(error).__name__}: "
                f'{error}): train in this one, with executor = "local"'
            ) from error
        return blob


@runtime_checkable
class ResultStore(Protocol):
    """Keeps every attempt at every run. The driver is its only user within a process.

    Processes: any number of drivers may have one store open; ``add`` and ``claim`` are atomic between
    them. Threads: one. A store that was opened by a process that was killed opens again, with every
    result whose ``add`` had returned.
    """

    def add(self, result: RunResult) -> None:
        """Keep one attempt. Adding the same (run id, attempt) again replaces it. Returns once it is safe
        from a crash of this process.

        Raises ValueError for a number that is not finite, which JSON would silently drop.
        """

    def get(self, run_id: str) -> RunResult | None:
        """The latest attempt, or None."""

    def results(self) -> list[RunResult]:
        """The latest attempt at every run, in the order in which the runs were first added."""

    def attempts(self, run_id: str) -> list[RunResult]:
        """Every attempt, first to last."""

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        """Take the right to train a run for that long; False while somebody else holds it."""

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        """Hold a claim for that long from now; False where it has been lost."""

    def release(self, run_id: str, owner: str) -> None:
        """Give a claim back. Nothing happens where ``owner`` does not hold it."""

    def close(self) -> None: ...


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
