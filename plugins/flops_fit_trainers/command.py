"""The trainer that starts a program for each run."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flops_fit_core import Job, Progress, RunError, RunFailed, RunResult, RunSpec, TrainContext
from flops_fit_trainers.command_options import CommandOptions, words
from flops_fit_trainers.outcome import Outcome, ProgressFile, measured, read_outcome
from flops_fit_trainers.placeholders import KINDS, fill
from flops_fit_trainers.program import Program, deadline, described, own_environment

LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Files:
    """Where a run and its program meet: ``programs/<run id>/`` in the study, and the run's checkpoints."""

    folder: Path
    checkpoint: Path

    @classmethod
    def of(cls, run: RunSpec, context: TrainContext) -> Files:
        """Made, and without what an earlier attempt has said. Checkpoints and the log stay."""
        files = cls(context.checkpoints.parent / "programs" / run.id, context.checkpoints / run.trajectory)
        for folder in (files.folder, files.checkpoint):
            folder.mkdir(parents=True, exist_ok=True)
        for file in (files.result, files.progress):
            file.unlink(missing_ok=True)
        return files

    @property
    def run(self) -> Path:
        return self.folder / "run.json"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def progress(self) -> Path:
        return self.folder / "progress.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


class CommandTrainer:
    """Starts the command once a run and reads its result as JSON; nothing is ever read from what it prints.

    The model is not built here: N and FLOPs are those of the plan.
    """

    def __init__(self, options: CommandOptions) -> None:
        self.options = options

    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        """One run after another. A program that fails is its run's result; one that is stopped gives none."""
        for run in job.runs:
            if context.should_stop():
                return
            yield from self._run(run, context)

    def _run(self, run: RunSpec, context: TrainContext) -> Iterator[Progress | RunResult]:
        dataset = context.dataset(run)  # which must be the one that was planned
        files = Files.of(run, context)
        values = _values(run, context, files, dataset.task.tokens_per_sample)
        _write_run(run, context, files)
        command = [fill(word, values, partial(context.options, run=run)) for word in words(self.options.command)]
        progress = ProgressFile(files.progress, run)
        started, until = time.monotonic(), deadline(self.options.timeout_minutes)
        with self._start(command, run, context, files, values) as program:
            while (status := program.wait(LOOK_SECONDS)) is None:
                yield from progress.latest()
                if context.should_stop():
                    program.stop()
                    return
                if time.monotonic() > until:
                    program.stop()
                    why = f"took longer than trainer.timeout_minutes = {self.options.timeout_minutes:g}"
                    yield _failed(run, context, files, f"{shown(command)} {why}", program.last_words())
                    return
            said = program.last_words()
        yield from progress.latest()
        yield self._result(run, context, files, command, status, said, time.monotonic() - started)

    def _start(
        self, command: list[str], run: RunSpec, context: TrainContext, files: Files, values: Mapping[str, Any]
    ) -> Program:
        own = {
            name: fill(value, values, partial(context.options, run=run))
            for name, value in self.options.environment.items()
        }
        return Program(
            command,
            env={**own_environment(), **_variables(values), **own},
            directory=Path(self.options.directory),
            log=files.log,
            grace=self.options.grace_seconds,
        )

    def _result(
        self,
        run: RunSpec,
        context: TrainContext,
        files: Files,
        command: list[str],
        status: int,
        said: str,
        seconds: float,
    ) -> RunResult:
        try:
            if status:
                raise RunFailed(described(status))
            outcome = read_outcome(files.result, run)
        except RunFailed as error:
            return _failed(run, context, files, f"{shown(command)} {error}", said)
        if outcome.status == "failed":
            return _failed(run, context, files, outcome.error or f"{shown(command)} says that it failed", said)
        return _finished(run, context, outcome, seconds)


def _finished(run: RunSpec, context: TrainContext, outcome: Outcome, seconds: float) -> RunResult:
    dataset = context.dataset(run)
    known = {"seconds": seconds, **measured(outcome, run)}
    known["unique_tokens"] = min(known["tokens"], dataset.tokens or known["tokens"])
    if known["loss"] is not None and dataset.bytes_per_token and "bits_per_byte" not in known:
        known["bits_per_byte"] = known["loss"] / math.log(2) / dataset.bytes_per_token
    return context.result(run, outcome.status, **known)


def _failed(run: RunSpec, context: TrainContext, files: Files, what: str, said: str) -> RunResult:
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
    message = f"{what}{f': {last}' if last else ''} (log: {files.log})"
    return context.result(run, "failed", error=RunError(type="CommandFailed", message=message, traceback=said))


def shown(command: list[str]) -> str:
    """A command as one types it, not longer than a line."""
    text = shlex.join(command)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _values(run: RunSpec, context: TrainContext, files: Files, per_sample: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "run_id": run.id,
        "seed": run.seed,
        "size": run.size,
        "params": run.params,
        "tokens": run.tokens,
        "steps": run.steps,
        "batch_size": run.batch_size,
        "context": per_sample,
        "tokens_per_step": run.tokens_per_step,
        "lr": context.options("optimizer", run).get("lr"),
        "flops": run.flops,
        "flops_per_token": run.flops_per_token,
        "budget": run.budget,
        "run": files.run,
        "result": files.result,
        "progress": files.progress,
        "checkpoint": files.checkpoint,
        "python": sys.executable,
    }
    return {name: value for name, value in values.items() if value is not None}


def _variables(values: Mapping[str, Any]) -> dict[str, str]:
    return {f"FLOPS_FIT_{name.upper()}": str(value) for name, value in values.items()}


def _write_run(run: RunSpec, context: TrainContext, files: Files) -> None:
    options = {kind: context.options(kind, run) for kind in KINDS}
    whole = {**run.model_dump(mode="json"), "id": run.id, "flops": run.flops, "options": options}
    files.run.write_text(json.dumps(whole, indent=2), encoding="utf-8")
