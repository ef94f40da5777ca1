"""The base class of executors, and the context they receive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flops_fit_core.records import Job, Progress, RunResult


@dataclass(frozen=True)
class JobEnded:
    """The last event of a job. Each submitted job has exactly one, after all of its results."""

    job: str
    error: str | None = None
    """None if the worker reached the end of the job; otherwise the reason, such as ``killed by SIGKILL``."""


class Executor(ABC):
    """Base class of executors, which run jobs. One thread of one driver uses an executor, except for
    :meth:`is_alive`.

    A subclass must implement :meth:`submit`, :meth:`events` and :meth:`cancel`. It sets :attr:`capacity` if it
    runs more than one job at a time, and overrides :meth:`close` if it holds processes, connections or threads.

    Every submitted job ends in exactly one :class:`JobEnded`, even if its worker dies. Results that a worker
    yielded before it died are delivered. Jobs may be submitted while events are read.
    """

    capacity: int = 1
    """Jobs that run at the same time. An attribute or a property; it may change while a cluster grows."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Accept a job. The same job id may be submitted again after its JobEnded."""

    @abstractmethod
    def events(self, timeout: float) -> Iterator[Progress | RunResult | JobEnded]:
        """Yield events. Ends after ``timeout`` seconds without an event, or when every submitted job has ended."""

    @abstractmethod
    def cancel(self, job_id: str) -> None:
        """Stop a job. Its JobEnded follows, with an error. An unknown id is ignored."""

    def is_alive(self, job_id: str) -> bool:
        """Whether a submitted job may still be trained. Another thread calls it, also while this object works.

        False if its worker has died or has passed a stated timeout, even if its JobEnded has not been read: the
        driver then renews the claims of the job's runs no longer. The default is True.
        """
        return True

    def close(self) -> None:  # noqa: B027 (an executor without processes has nothing to close)
        """Stop everything within seconds and leave no process behind. May be called twice.

        The default does nothing.
        """


class JobRunner(Protocol):
    """Trains jobs in the process that calls it. Picklable: unpickling imports neither torch nor plugins."""

    def __call__(self, job: Job, should_stop: Callable[[], bool] = ...) -> Iterator[Progress | RunResult]:
        """Train a job like :class:`JobTask`."""

    def preload(self) -> None:
        """Import torch and the training code, so that the first job starts immediately."""


class JobTask(Protocol):
    """Trains one job in the process that calls it. Picklable: unpickling imports neither torch nor plugins."""

    def __call__(self, should_stop: Callable[[], bool] = ...) -> Iterator[Progress | RunResult]:
        """Yield Progress from time to time and one RunResult per run.

        ``should_stop`` is called between steps. Once it returns True, the trainer writes a checkpoint and the
        iterator ends without the results of unfinished runs.
        """


class ExecutorContext(Protocol):
    """The study's folder, the slots of this machine, and the jobs as callables and command lines."""

    @property
    def folder(self) -> Path:
        """The study's folder. Every worker must see it."""

    @property
    def slots(self) -> Sequence[Mapping[str, str]]:
        """Environment variables of each slot. A slot can run one job: a core, or a GPU."""

    def task(self, job: Job) -> JobTask:
        """The training of this job as a picklable callable.

        In a worker: ``for event in task(should_stop)``.
        Pickling it raises ConfigError if the study has Python objects that cannot be pickled.
        """

    @property
    def runner(self) -> JobRunner:
        """A task without its job: call ``runner(job, should_stop)``.

        For an executor that sends it to a worker once and then sends many jobs. Pickling it raises ConfigError
        like a task. The pickle may contain the user's data: do not write it to disk.
        """

    def command(self, job: Job) -> list[str]:
        """Write the job to the study's folder and return the command line that trains it, for a scheduler.

        The command runs on any machine that sees the study's folder and this Python environment. It writes its
        results and its progress to the folder, where :class:`~flops_fit_core.plugins.QueuedJobs` reads them. On
        SIGTERM it writes a checkpoint and exits with status 75. Run the same command again to continue. It exits
        with 0 when no run of the job remains, and with 1 if the job cannot be trained.

        Raises ConfigError like :meth:`require_importable_plugins`.
        """

    def require_importable_plugins(self) -> None:
        """Raise ConfigError if the study uses Python objects as plugins. They are never written to disk, so
        :meth:`command` cannot train them. Call this when the executor is built, to fail early."""
