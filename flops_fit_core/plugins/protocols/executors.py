"""Executors and the context they receive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from flops_fit_core.errors import ConfigError
from flops_fit_core.records import Job, Progress, RunResult


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
