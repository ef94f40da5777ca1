"""Options of the trainer ``command``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeFloat, model_validator

from flops_fit_core.plugins import LocalPath, Options, Runtime
from flops_fit_trainers.placeholders import check_template


def _check(command: str | tuple[str, ...]) -> str | tuple[str, ...]:
    for word in words(command):
        check_template(word)
    if not words(command):
        raise ValueError('is empty: write command = "python train.py --lr {lr}", say')
    return command


def _check_each(environment: dict[str, str]) -> dict[str, str]:
    for value in environment.values():
        check_template(value)
    return environment


def words(command: str | tuple[str, ...]) -> tuple[str, ...]:
    """A command as a list of arguments; text is split as a shell would, and no shell sees it.

    Raises ValueError for a quote that is not closed.
    """
    return tuple(shlex.split(command)) if isinstance(command, str) else command


class CommandOptions(Options):
    """Any program, started once a run: it gets the run's values as arguments and in its environment, trains, and
    writes what came of it to the JSON file ``{result}``."""

    command: Annotated[str | tuple[str, ...], AfterValidator(_check)]
    """What to start: ``"python train.py --lr {lr} --steps {steps}"``, or a list of arguments. No shell is
    involved. ``{lr:.3g}`` formats a value; ``{model.depth}`` is an option of the model, and so for ``dataset``,
    ``optimizer`` and ``schedule``; a brace of the program's own is written twice."""
    environment: Annotated[dict[str, str], AfterValidator(_check_each)] = {}
    """Further environment variables, with the same placeholders. Every value is in ``FLOPS_FIT_LR`` and so on
    anyhow."""
    fingerprint: str = ""
    """What identifies the program beside its command: write another value when it changes what it computes, and
    its runs are others."""
    directory: Annotated[LocalPath, Runtime()] = "."
    """Working directory of the program."""
    timeout_minutes: Annotated[float | None, Field(gt=0), Runtime()] = None
    """A run that takes longer is stopped and has failed."""
    grace_period: Annotated[NonNegativeFloat, Runtime()] = 10.0
    """Time between SIGTERM and SIGKILL for a program that is stopped, to write a checkpoint. Executors have less
    patience with their workers; the program gets its time all the same."""

    @model_validator(mode="before")
    @classmethod
    def _remember_the_directory(cls, written: Any) -> Any:
        """A study that is opened from another folder runs its program where it was written for."""
        return {"directory": str(Path.cwd()), **written} if isinstance(written, dict) else written
