"""The trainer ``command``: start a program for each run."""

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
from flops_fit_core.plugins import (
    EnvironmentValue,
    TrainContext,
    Trainer,
    bits_per_byte,
    resolve_value,
    write_atomically,
)
from flops_fit_trainers.command_options import CommandOptions, words
from flops_fit_trainers.outcome import Outcome, ProgressFile, read_outcome, result_fields
from flops_fit_trainers.placeholders import KINDS, OptionsOf, fill, values_of
from flops_fit_trainers.program import Program, deadline, describe_status, program_environment

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Files:
    """The files of a run and its program: ``programs/<run id>/`` in the study, and the run's checkpoints."""

    folder: Path
    checkpoint: Path

    @classmethod
    def create(cls, run: RunSpec, context: TrainContext) -> Files:
        """Create the folders and delete the result and progress of an earlier attempt. Checkpoints and the log
        stay."""
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
    """Starts the command once per run and reads its result from a JSON file, never from its output.

    The model is not built: N and FLOPs are the plan's.
    """

    def __init__(self, options: CommandOptions) -> None:
        self.options = options

    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        """Train the runs one after another. A program that fails gives a failed result, a stopped program none."""
        for run in job.runs:
            if context.should_stop():
                return
            yield from Launch(run, context, self.options).events()


def check_command(options: CommandOptions, run: RunSpec, options_of: OptionsOf) -> None:
    """Raises ConfigError for a placeholder without a value, and for a format that does not fit the value."""
    values = {**values_of(run, options_of), **Files(Path(), Path()).placeholders}
    texts = [value for value in options.environment.values() if isinstance(value, str)]
    for template in (*words(options.command), *texts):
        fill(template, values, options_of)


class Launch:
    """The program of a run, from its start to its result.

    Raises RunFailed if the dataset has changed since the plan, ConfigError for a placeholder without a value.
    """

    def __init__(self, run: RunSpec, context: TrainContext, options: CommandOptions) -> None:
        self.run, self.context, self.options = run, context, options
        self.dataset = context.dataset(run)
        self.files = Files.create(run, context)
        self.values = {**values_of(run, partial(context.options, run=run)), **self.files.placeholders}
        self.command = [self._fill(word) for word in words(options.command)]
        self.environment = {name: self._value(name, value) for name, value in options.environment.items()}
        self.started = time.monotonic()

    def events(self) -> Iterator[Progress | RunResult]:
        """The program's progress, then the result unless the program is stopped."""
        _write_run(self.run, self.context, self.files)
        progress = ProgressFile(self.files.progress, self.run)
        end = deadline(self.options.timeout_minutes)
        with self._start() as program:
            while (status := program.wait(POLL_SECONDS)) is None:
                yield from progress.read_latest()
                if self.context.should_stop():
                    program.stop()
                    return
                if time.monotonic() > end:
                    program.stop()
                    reason = f"took longer than trainer.timeout_minutes = {self.options.timeout_minutes:g}"
                    yield self._failure(f"{self.command_line} {reason}", program)
                    return
        yield from progress.read_latest()
        yield self._result(status, program)

    def _fill(self, template: str) -> str:
        return fill(template, self.values, partial(self.context.options, run=self.run))

    def _value(self, name: str, value: EnvironmentValue) -> str:
        """Placeholders are replaced in plain text only."""
        if isinstance(value, str):
            return self._fill(value)
        return resolve_value(value, f"trainer.environment.{name}")

    def _start(self) -> Program:
        return Program(
            self.command,
            env={**program_environment(), **_variables(self.values), **self.environment},
            directory=Path(self.options.directory),
            log=self.files.log,
            grace_period=self.options.grace_period,
        )

    def _result(self, status: int, program: Program) -> RunResult:
        if status:
            return self._failure(f"{self.command_line} {describe_status(status)}", program)
        try:
            outcome = read_outcome(self.files.result, self.run)
        except RunFailed as error:
            return self._failure(f"{self.command_line} {error}", program)
        if outcome.status == "failed":
            return self._failure(outcome.error or f"{self.command_line} reported a failure", program)
        return self._success(outcome)

    def _success(self, outcome: Outcome) -> RunResult:
        fields = {"seconds": self._seconds(), **result_fields(outcome, self.run)}
        fields["unique_tokens"] = min(fields["tokens"], self.dataset.num_unique_tokens or fields["tokens"])
        if fields["loss"] is not None:
            fields.setdefault("bits_per_byte", bits_per_byte(fields["loss"], self.dataset.bytes_per_token))
        return self.context.result(self.run, outcome.status, **fields)

    def _failure(self, reason: str, program: Program) -> RunResult:
        summary = program.summarize_output()
        message = f"{reason}{f': {summary}' if summary else ''} (log: {self.files.log})"
        error = RunError(type="CommandFailed", message=message, traceback=program.output_tail())
        return self.context.result(self.run, "failed", error=error, seconds=self._seconds())

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def command_line(self) -> str:
        """The command as you type it, at most 80 characters."""
        text = shlex.join(self.command)
        return text if len(text) <= 80 else f"{text[:77]}..."


def _variables(values: Mapping[str, Any]) -> dict[str, str]:
    return {f"FLOPS_FIT_{name.upper()}": str(value) for name, value in values.items()}


def _write_run(run: RunSpec, context: TrainContext, files: Files) -> None:
    options = {kind: context.options(kind, run) for kind in KINDS}
    content = {**run.model_dump(mode="json"), "id": run.id, "flops": run.flops, "options": options}
    write_atomically(files.run, json.dumps(content, indent=2), durable=False)
