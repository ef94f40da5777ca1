"""Plugins of the harness: a nondeterministic trainer, a logger of acknowledged results, and a broken store.

Experiments name them ``torture.plugin/...``; the command line gets ``-p torture.plugin``.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from flops_fit_core import Job, Progress, RunResult
from flops_fit_core.plugins import (
    Logger,
    LoggerSpec,
    Options,
    ResultStore,
    StoreSpec,
    TrainContext,
    Trainer,
    TrainerSpec,
    hookimpl,
)

ACKNOWLEDGED = "TORTURE_ACKNOWLEDGED"
"""The file to which the logger appends a line of JSON for each result."""
TRAINED = "TORTURE_TRAINED"
"""The file to which the trainer appends ``<run id> <loss>`` at the end of each training."""


def append_line(variable: str, text: str) -> None:
    """Append a line to the file that an environment variable names, in one system call.

    Does nothing without the variable: workers of Ray have the environment of their node.
    """
    if variable not in os.environ:
        return
    handle = os.open(os.environ[variable], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, f"{text}\n".encode())
    finally:
        os.close(handle)


class NoisyOptions(Options):
    """Options of the trainer ``noisy``."""

    seconds: float = 0.2
    """Wall time of a run."""


class NoisyTrainer(Trainer):
    """The surface's loss times a factor that differs in each training, as on a GPU.

    A deterministic trainer hides replaced results: the second training gives the first one's loss.
    """

    def __init__(self, options: NoisyOptions) -> None:
        self.options = options

    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        for run in job.runs:
            end = time.monotonic() + self.options.seconds
            while time.monotonic() < end:
                if context.should_stop():
                    return
                time.sleep(0.02)
                yield Progress(run=run.id, step=1, steps=2, tokens=1)
            surface = context.dataset(run)
            factor = random.SystemRandom().uniform(0.99, 1.01)
            loss = surface.synthetic_loss(run.params, run.tokens, run.seed) * factor
            append_line(TRAINED, f"{run.id} {loss!r}")
            yield context.result(
                run, "completed", loss=loss, tokens=run.tokens, unique_tokens=run.tokens, synthetic=True
            )


class AcknowledgementLog(Logger):
    """Writes each result that the driver reports as stored. The driver calls loggers after ``ResultStore.add``."""

    def finished(self, result: RunResult) -> None:
        append_line(ACKNOWLEDGED, json.dumps({"id": result.id, **result.model_dump(mode="json")}))


class HastyStore(ResultStore):
    """Broken on purpose: it acknowledges a result before it writes it, with the next result or at the end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._pending: list[RunResult] = []
        file.touch()

    def add(self, result: RunResult) -> None:
        self._write()
        self._pending.append(result)

    def all_attempts(self) -> Iterator[RunResult]:
        lines = self._file.read_text().splitlines()
        yield from (RunResult.model_validate_json(line) for line in lines)
        yield from self._pending

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        with self._file.open("a") as file:
            file.writelines(f"{result.model_dump_json()}\n" for result in self._pending)
        self._pending.clear()


@hookimpl
def flops_fit_trainers() -> Iterator[TrainerSpec]:
    yield TrainerSpec(name="noisy", options=NoisyOptions, build=NoisyTrainer)


@hookimpl
def flops_fit_loggers() -> Iterator[LoggerSpec]:
    yield LoggerSpec(name="acknowledge", options=Options, build=lambda options, folder: AcknowledgementLog())


@hookimpl
def flops_fit_stores() -> Iterator[StoreSpec]:
    yield StoreSpec(
        name="hasty",
        options=Options,
        build=lambda options, folder: HastyStore(folder / "hasty.jsonl"),
        file="hasty.jsonl",
    )
