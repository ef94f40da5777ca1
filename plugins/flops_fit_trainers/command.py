"""The trainer that starts a program for each run."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flops_fit_core import Job, Progress, RunError, RunFailed, RunResult, RunSpec
from flops_fit_core.plugins import TrainContext, Trainer, bits_per_byte
from flops_fit_trainers.command_options import CommandOptions, words
from flops_fit_trainers.outcome import Outcome, ProgressFile, measured, read_outcome
from flops_fit_trainers.placeholders import KINDS, OptionsOf, fill, values_of
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

    @property
    def placeholders(self) -> dict[str, Path]:
        return {
            "run": self.run,
            "result": self.result,
            "progress": self.progress,
            "checkpoint": self.checkpoint,
        }


class CommandTrainer(Trainer):
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
            yield from Launch(run, context, self.options).events()


def check_command(options: CommandOptions, run: RunSpec, options_of: OptionsOf) -> None:
    """Raises ConfigError for a placeholder without a value, and for a format that does not fit its value."""
    values = {**values_of(run, options_of), **Files(Path(), Path()).placeholders}
    for template in (*words(options.command), *options.environment.values()):
        fill(template, values, options_of)


class Launch:
    """One run's program, from its start to its result.

    Raises RunFailed for data that are no longer those that were planned, ConfigError for a placeholder without a
    value.
    """

    def __init__(self, run: RunSpec, context: TrainContext, options: CommandOptions) -> None:
        self.run, self.context, self.options = run, context, options
        self.dataset = context.dataset(run)
        self.files = Files.of(run, context)
        self.values = {**values_of(run, partial(context.options, run=run)), **self.files.placeholders}
        self.command = [self._filled(word) for word in words(options.command)]
        self.environment = {name: self._filled(value) for name, value in options.environment.items()}
        self.started = time.monotonic()

    def events(self) -> Iterator[Progress | RunResult]:
        """Progress as the program tells it, and the result unless it is stopped."""
        _write_run(self.run, self.context, self.files)
        progress = ProgressFile(self.files.progress, self.run)
        until = deadline(self.options.timeout_minutes)
        with self._start() as program:
            while (status := program.wait(LOOK_SECONDS)) is None:
                yield from progress.latest()
                if self.context.should_stop():
                    program.stop()
                    return
                if time.monotonic() > until:
                    program.stop()
                    why = f"took longer than trainer.timeout_minutes = {self.options.timeout_minutes:g}"
                    yield self._failed(f"{self.shown} {why}", program)
                    return
        yield from progress.latest()
        yield self._result(status, program)

    def _filled(self, template: str) -> str:
        return fill(template, self.values, partial(self.context.options, run=self.run))

    def _start(self) -> Program:
        return Program(
            self.command,
            env={**own_environment(), **_variables(self.values), **self.environment},
            directory=Path(self.options.directory),
            log=self.files.log,
            grace_period=self.options.grace_period,
        )

    def _result(self, status: int, program: Program) -> RunResult:
        if status:
            return self._failed(f"{self.shown} {described(status)}", program)
        try:
            outcome = read_outcome(self.files.result, self.run)
        except RunFailed as error:
            return self._failed(f"{self.shown} {error}", program)
        if outcome.status == "failed":
            return self._failed(outcome.error or f"{self.shown} says that it failed", program)
        return self._finished(outcome)

    def _finished(self, outcome: Outcome) -> RunResult:
        known = {"seconds": self._seconds(), **measured(outcome, self.run)}
        known["unique_tokens"] = min(known["tokens"], self.dataset.num_unique_tokens or known["tokens"])
        if known["loss"] is not None:
            known.setdefault("bits_per_byte", bits_per_byte(known["loss"], self.dataset.bytes_per_token))
        return self.context.result(self.run, outcome.status, **known)

    def _failed(self, what: str, program: Program) -> RunResult:
        gist = program.gist()
        message = f"{what}{f': {gist}' if gist else ''} (log: {self.files.log})"
        error = RunError(type="CommandFailed", message=message, traceback=program.last_words())
        return self.context.result(self.run, "failed", error=error, seconds=self._seconds())

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def shown(self) -> str:
        """The command as one types it, not longer than a line."""
        text = shlex.join(self.command)
        return text if len(text) <= 80 else f"{text[:77]}..."


def _variables(values: Mapping[str, Any]) -> dict[str, str]:
    return {f"FLOPS_FIT_{name.upper()}": str(value) for name, value in values.items()}


def _write_run(run: RunSpec, context: TrainContext, files: Files) -> None:
    options = {kind: context.options(kind, run) for kind in KINDS}
    whole = {**run.model_dump(mode="json"), "id": run.id, "flops": run.flops, "options": options}
    files.run.write_text(json.dumps(whole, indent=2), encoding="utf-8")
