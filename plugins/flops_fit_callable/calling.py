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
    """The module that the function makes.

    Raises ConfigError for one that cannot be found, cannot be called so, raises or makes something else; RunFailed
    where its file is no longer the one that the run was planned with.
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
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ConfigError(f"{WHAT}: {path}({shown}) failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{WHAT}: {path} made a {type(module).__name__}, not a torch.nn.Module")
    return module


def arguments_for(function: Callable[..., Any], options: CallableOptions, task: Task) -> dict[str, Any]:
    """What it is called with: what the task gives and it asks for by name, what is written, and the size.

    Raises ConfigError for an argument that it does not take, and for one that is missing.
    """
    parameters = _parameters(function, options.import_path)
    given = given_by(task)
    written = {**options.arguments, options.size_argument: options.size}
    if options.size_argument in options.arguments:
        raise ConfigError(
            f"{WHAT}: {options.size_argument} is what model.size sets: take it out of model.arguments"
        )
    anything = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    named = {name for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    about = f"{WHAT}: {options.import_path} takes {', '.join(parameters) or 'no arguments'}"
    if not anything and (unknown := written.keys() - named):
        where = "model.size_argument names" if options.size_argument in unknown else "model.arguments has"
        raise ConfigError(f"{about}; {where} {', '.join(sorted(unknown))}")
    arguments = {name: value for name, value in given.items() if name in named} | written
    required = {name for name in named if parameters[name].default is inspect.Parameter.empty}
    if missing := sorted(required - arguments.keys()):
        raise ConfigError(
            f"{about}; {', '.join(missing)} must be in model.arguments: this dataset gives {', '.join(given)}"
        )
    return arguments


def given_by(task: Task) -> dict[str, Any]:
    """What a function may ask for by name."""
    given: dict[str, Any] = {"task": task}
    if isinstance(task, LanguageTask):
        given |= {"vocab_size": task.vocab_size, "context": task.context}
    elif isinstance(task, SupervisedTask):
        outputs = "num_classes" if task.kind == "cross_entropy" else "num_outputs"
        given |= {"input_shape": task.inputs, outputs: task.outputs_size}
    return given


def _parameters(function: Callable[..., Any], path: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{WHAT}: {path} does not tell its arguments: wrap it in a function of yours") from error
