"""Options of the trainer ``command``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeFloat, model_validator

from flops_fit_core.plugins import EnvironmentValue, LocalPath, Options, RunsCode, Runtime
from flops_fit_trainers.placeholders import check_template


def _check_command(command: str | tuple[str, ...]) -> str | tuple[str, ...]:
    for word in words(command):
        check_template(word)
    if not words(command):
        raise ValueError('is empty: write for example command = "python train.py --lr {lr}"')
    return command


def _check_environment(environment: dict[str, EnvironmentValue]) -> dict[str, EnvironmentValue]:
    for value in environment.values():
        if isinstance(value, str):
            check_template(value)
    return environment


def words(command: str | tuple[str, ...]) -> tuple[str, ...]:
    """The command as a list of arguments. Text is split as a shell does, without a shell.

    Raises ValueError for a quote that is not closed.
    """
    return tuple(shlex.split(command)) if isinstance(command, str) else command


class CommandOptions(Options):
    """Starts a program once per run. The program receives the run's values as arguments and environment variables,
    trains, and writes its result to the JSON file ``{result}``."""

    command: Annotated[str | tuple[str, ...], AfterValidator(_check_command), RunsCode()]
    """Command to start: ``"python train.py --lr {lr} --steps {steps}"``, or a list of arguments. No shell is used.
    ``{lr:.3g}`` formats a value. ``{model.depth}`` is an option of the model; ``dataset``, ``optimizer`` and
    ``schedule`` work the same way. Write ``{{`` for a literal brace."""
    environment: Annotated[dict[str, EnvironmentValue], AfterValidator(_check_environment), RunsCode()] = {}
    """Further environment variables, with the same placeholders. Every value is also in a variable such as
    ``FLOPS_FIT_LR``. ``{ API_TOKEN = { from_env = "API_TOKEN" } }`` takes a secret from the environment of the
    worker: the study's folder and the run's id have the variable's name only."""
    fingerprint: str = ""
    """Version of the program, part of the run ids. Change it when the program computes something else under the
    same command."""
    directory: Annotated[LocalPath, Runtime(), RunsCode()] = "."
    """Working directory of the program."""
    timeout_minutes: Annotated[float | None, Field(gt=0), Runtime()] = None
    """Minutes after which a run is stopped and fails. Unset: no limit."""
    grace_period: Annotated[NonNegativeFloat, Runtime()] = 10.0
    """Seconds between SIGTERM and SIGKILL when a program is stopped, to write a checkpoint. The program gets this
    time even if the executor kills its worker earlier."""

    @model_validator(mode="before")
    @classmethod
    def _set_directory(cls, values: Any) -> Any:
        """Store the current directory: a study opened from another folder runs its program in this one."""
        return {"directory": str(Path.cwd()), **values} if isinstance(values, dict) else values
