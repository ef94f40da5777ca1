"""The user's LightningModule: made, and given the run's optimizer where it has none."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from flops_fit_core import ConfigError, RunSpec
from flops_fit_core.plugins import BuiltRun, TrainContext, import_object
from flops_fit_trainers.lightning_options import LightningOptions

WHAT = "trainer 'lightning'"
GIVEN = ("model", "task", "steps", "tokens", "batch_size", "lr", "seed")
"""What the function may ask for by name."""


def make_module(
    options: LightningOptions, run: RunSpec, parts: BuiltRun, context: TrainContext
) -> LightningModule:
    """Raises ConfigError for a function that cannot be found or called so, or makes something else, and for a
    module that has none of the run's parameters."""
    given = {
        "model": parts.model,
        "task": parts.dataset.task,
        "steps": run.steps,
        "tokens": run.tokens,
        "batch_size": run.batch_size,
        "lr": context.options("optimizer", run).get("lr"),
        "seed": run.seed,
    }
    function = _function(options)
    module = function(**_arguments(function, options, given))
    if not isinstance(module, LightningModule):
        raise ConfigError(f"{WHAT}: {options.module} made a {type(module).__name__}, not a LightningModule")
    if not {id(one) for one in parts.model.parameters()} <= {id(one) for one in module.parameters()}:
        raise ConfigError(
            f"{WHAT}: {options.module} made a module without the model it was given: self.model = model"
        )
    return module


def check_module(options: LightningOptions) -> None:
    """Raises ConfigError for a function that cannot be found or called with what it is given."""
    _arguments(_function(options), options, dict.fromkeys(GIVEN))


def _function(options: LightningOptions) -> Callable[..., Any]:
    function = import_object(options.module, WHAT)
    if not callable(function):
        raise ConfigError(f"{WHAT}: {options.module} is a {type(function).__name__}, which cannot be called")
    return function  # type: ignore[no-any-return]


def _arguments(function: Callable[..., Any], options: LightningOptions, given: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    if "model" not in parameters:
        raise ConfigError(f"{WHAT}: {options.module} must take the run's model by the name 'model'")
    arguments = {name: value for name, value in given.items() if name in parameters} | options.arguments
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{WHAT}: {options.module}: {error}; it takes {', '.join(parameters)}; given are {', '.join(given)} "
            f"and trainer.arguments"
        ) from None
    return arguments


def optimizes_itself(module: LightningModule) -> bool:
    """Whether it has a ``configure_optimizers`` of its own; the experiment's optimizer and schedule are left
    out."""
    return bool(is_overridden("configure_optimizers", module))


def give_optimizer(module: LightningModule, parts: BuiltRun) -> None:
    """The run's own, whose learning rates are set before each step."""
    module.configure_optimizers = lambda: parts.optimizer
