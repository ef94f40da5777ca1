"""Create the user's LightningModule, and set the run's optimizer if the module has none."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from flops_fit_core import ConfigError, RunSpec
from flops_fit_core.plugins import BuiltRun, TrainContext, import_object
from flops_fit_trainers.lightning_options import LightningOptions

TRAINER = "trainer 'lightning'"
ARGUMENTS = ("model", "task", "steps", "tokens", "batch_size", "lr", "seed")
"""Arguments that the function may have."""


def build_module(
    options: LightningOptions, run: RunSpec, built: BuiltRun, context: TrainContext
) -> LightningModule:
    """Raises ConfigError if the function cannot be imported or called, if it does not return a LightningModule, or
    if that module does not contain the run's model."""
    available = {
        "model": built.model,
        "task": built.dataset.task,
        "steps": run.steps,
        "tokens": run.tokens,
        "batch_size": run.batch_size,
        "lr": context.options("optimizer", run).get("lr"),
        "seed": run.seed,
    }
    function = _function(options)
    module = function(**_arguments(function, options, available))
    if not isinstance(module, LightningModule):
        raise ConfigError(f"{TRAINER}: {options.module} made a {type(module).__name__}, not a LightningModule")
    if not {id(param) for param in built.model.parameters()} <= {id(param) for param in module.parameters()}:
        raise ConfigError(
            f"{TRAINER}: {options.module} made a module without the run's model: write self.model = model"
        )
    return module


def check_module(options: LightningOptions) -> None:
    """Raises ConfigError if the function cannot be imported or called with its arguments."""
    _arguments(_function(options), options, dict.fromkeys(ARGUMENTS))


def _function(options: LightningOptions) -> Callable[..., Any]:
    function = import_object(options.module, TRAINER)
    if not callable(function):
        raise ConfigError(f"{TRAINER}: {options.module} is a {type(function).__name__}, which cannot be called")
    return function  # type: ignore[no-any-return]


def _arguments(
    function: Callable[..., Any], options: LightningOptions, available: dict[str, Any]
) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    if "model" not in parameters:
        raise ConfigError(f"{TRAINER}: {options.module} must take the run's model by the name 'model'")
    arguments = {name: value for name, value in available.items() if name in parameters} | options.arguments
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{TRAINER}: {options.module}: {error}; its parameters: {', '.join(parameters)}; available arguments: "
            f"{', '.join(available)} and trainer.arguments"
        ) from None
    return arguments


def has_optimizer(module: LightningModule) -> bool:
    """Whether the module defines ``configure_optimizers``. Then the experiment's optimizer and schedule are not
    used."""
    return bool(is_overridden("configure_optimizers", module))


def set_optimizer(module: LightningModule, built: BuiltRun) -> None:
    """Use the run's optimizer. Its learning rates are set before each step."""
    module.configure_optimizers = lambda: built.optimizer
