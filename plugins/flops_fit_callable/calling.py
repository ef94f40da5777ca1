"""Calls a user's function for a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from flops_fit_callable import CODE, CallableOptions
from flops_fit_core import ConfigError, FlopsFitError, RunFailed
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.plugins import Task, code_hash, import_object

WHAT = "model 'callable'"


def make(options: CallableOptions, task: Task) -> nn.Module:
    """The module that the function returns.

    Raises ConfigError if the function cannot be imported or called with these arguments, raises, or returns
    another type. Raises RunFailed if its code has changed since the run was planned.
    """
    path = options.import_path
    if options.fingerprint.startswith(CODE) and options.fingerprint != f"{CODE}{code_hash(path)}":
        raise RunFailed(f"{path} has changed since this run was planned: plan again")
    function = import_object(path, WHAT)
    if not callable(function):
        raise ConfigError(f"{WHAT}: {path} is a {type(function).__name__}, which cannot be called")
    arguments = arguments_for(function, options, task)
    try:
        module = function(**arguments)
    except FlopsFitError:
        raise
    except Exception as error:
        text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ConfigError(f"{WHAT}: {path}({text}) failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{WHAT}: {path} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def arguments_for(function: Callable[..., Any], options: CallableOptions, task: Task) -> dict[str, Any]:
    """The function's arguments: those of the task that it has parameters for, those of the options, and the size.

    Raises ConfigError for an unknown or a missing argument.
    """
    parameters = _parameters(function, options.import_path)
    from_task = task_arguments(task)
    explicit = {**options.arguments, options.size_argument: options.size}
    if options.size_argument in options.arguments:
        raise ConfigError(f"{WHAT}: {options.size_argument} is set by model.size: take it out of model.arguments")
    accepts_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    signature = f"{WHAT}: {options.import_path} takes {', '.join(parameters) or 'no arguments'}"
    if not accepts_any and (unknown := explicit.keys() - named):
        source = "model.size_argument is" if options.size_argument in unknown else "model.arguments has"
        raise ConfigError(f"{signature}; {source} {', '.join(sorted(unknown))}")
    arguments = {name: value for name, value in from_task.items() if name in named} | explicit
    required = {name for name in named if parameters[name].default is inspect.Parameter.empty}
    if missing := sorted(required - arguments.keys()):
        raise ConfigError(
            f"{signature}; {', '.join(missing)} must be in model.arguments: this dataset gives "
            f"{', '.join(from_task)}"
        )
    return arguments


def task_arguments(task: Task) -> dict[str, Any]:
    """Arguments that a task provides, by name."""
    arguments: dict[str, Any] = {"task": task}
    if isinstance(task, LanguageTask):
        arguments |= {"vocab_size": task.vocab_size, "context": task.context}
    elif isinstance(task, SupervisedTask):
        outputs = "num_classes" if task.kind == "cross_entropy" else "num_outputs"
        arguments |= {"input_shape": task.inputs, outputs: task.outputs_size}
    return arguments


def _parameters(function: Callable[..., Any], path: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{WHAT}: {path} has no signature: wrap it in a Python function") from error
