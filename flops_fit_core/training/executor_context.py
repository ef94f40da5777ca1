"""The driver's side of training: what an executor receives to run jobs. Imports torch only in a worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.queued_jobs import QueuedJobs
from flops_fit_core.records import Job, Progress, RunResult

ShouldStop = Callable[[], bool]


def never() -> bool:
    """The default ``should_stop``."""
    return False


class Runner:
    """Implements ``JobRunner``: trains jobs of one study in the process that calls it.

    Args:
        plugins: A :class:`PluginSetup` as JSON.
        folder: The study's folder.
        objects: Plugins that are Python objects, by name; or these in one cloudpickle blob.

    A pickle holds the objects as a blob, which is opened when the first job is trained.
    """

    def __init__(self, plugins: str, folder: Path, objects: Mapping[str, object] | bytes | None = None) -> None:
        self._plugins = plugins
        self._folder = folder.absolute()
        self._objects = objects

    def __call__(self, job: Job, should_stop: ShouldStop = never) -> Iterator[Progress | RunResult]:
        from flops_fit_core.training.worker import work

        yield from work(
            job.model_dump_json(),
            self._plugins,
            objects=self._objects,
            folder=self._folder,
            should_stop=should_stop,
        )

    def preload(self) -> None:
        """Import torch and the training code."""
        import flops_fit_core.training.worker  # noqa: F401

    def __reduce__(self) -> tuple[Any, ...]:
        return Runner, (self._plugins, self._folder, self._blob)

    @cached_property
    def _blob(self) -> bytes | None:
        if isinstance(self._objects, bytes):
            return self._objects
        if not self._objects:
            return None
        import cloudpickle

        try:
            blob: bytes = cloudpickle.dumps(dict(self._objects))
        except Exception as error:
            raise ConfigError(
                f"the model, dataset or loss cannot be sent to a worker process ({type(error).__name__}: "
                f'{error}): train in this one, with executor = "local"'
            ) from error
        return blob


@dataclass(frozen=True)
class Task:
    """Implements ``JobTask``: trains one job in the process that calls it."""

    runner: Runner
    job: Job

    def __call__(self, should_stop: ShouldStop = never) -> Iterator[Progress | RunResult]:
        return self.runner(self.job, should_stop)


@dataclass(frozen=True)
class StudyExecutorContext:
    """Implements ``ExecutorContext`` for one study."""

    folder: Path
    plugins: str
    """A :class:`PluginSetup` as JSON."""
    live: Mapping[str, object]
    """Plugins that are Python objects, by name. Never written to disk."""
    slots: Sequence[Mapping[str, str]]

    @cached_property
    def runner(self) -> Runner:
        return Runner(self.plugins, self.folder, self.live)

    def task(self, job: Job) -> Task:
        return Task(self.runner, job)

    def command(self, job: Job) -> list[str]:
        self.require_importable_plugins()
        folder = self.folder.absolute()
        queued = QueuedJobs(folder).add(job, self.plugins)
        # The worker imports what this process imports, from the same folders.
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        python = ["env", f"PYTHONPATH={path}", sys.executable, "-P"]
        program = [*python, "-m", "flops_fit_core.training.run_job"]
        return [*program, str(folder), job.id, queued.ticket, queued.digest]

    def require_importable_plugins(self) -> None:
        if self.live:
            raise ConfigError(
                "a queued job finds only what is on disk, and these plugins are Python objects: "
                f"{', '.join(sorted(self.live))}. Write a plugin module (docs/write-a-plugin.md) and name it with "
                '-p MODULE, or train on this machine with executor = "processes"'
            )
