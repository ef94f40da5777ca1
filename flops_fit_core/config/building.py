"""Build the objects of an experiment's choices: datasets, stores, executors, loggers, fitters, recipes.

Each function raises PluginError, which names the plugin, if the plugin raises an exception that is no
FlopsFitError or returns an object that does not inherit from the kind's base class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from flops_fit_core.config.choices import PluginConfig
from flops_fit_core.errors import ConfigError, PluginError
from flops_fit_core.plugins.protocols import (
    Dataset,
    Executor,
    ExecutorContext,
    Fitter,
    Logger,
    RecipeInput,
    ResultStore,
    Task,
)
from flops_fit_core.plugins.specs import (
    DatasetSpec,
    DeviceSpec,
    ExecutorSpec,
    FitterSpec,
    LoggerSpec,
    RecipeSpec,
    Spec,
    StoreSpec,
)
from flops_fit_core.records import Hyperparameters

S = TypeVar("S", bound=Spec)


def build_dataset(chosen: PluginConfig[DatasetSpec], seed: int) -> Dataset:
    """The dataset in the order of a seed. Raises DataError, PluginError."""
    dataset = chosen.call(chosen.spec.build, chosen.options, seed)
    _check_inherits(chosen, dataset, Dataset)
    for name in ("task", "fingerprint"):
        if not hasattr(dataset, name):
            raise PluginError(
                f"{_describe(chosen)}: {type(dataset).__name__} has no {name}: set it in the class or in __init__"
            )
    _check_inherits(chosen, dataset.task, Task)
    return dataset


def build_store(chosen: PluginConfig[StoreSpec], folder: Path) -> ResultStore:
    """The open store of the study in ``folder``. Raises StoreError, PluginError."""
    store = chosen.call(chosen.spec.build, chosen.options, folder)
    _check_inherits(chosen, store, ResultStore)
    return store


def build_executor(chosen: PluginConfig[ExecutorSpec], context: ExecutorContext) -> Executor:
    """The executor. Raises ConfigError, PluginError."""
    executor = chosen.call(chosen.spec.build, chosen.options, context)
    _check_inherits(chosen, executor, Executor)
    return executor


def build_logger(chosen: PluginConfig[LoggerSpec], folder: Path) -> Logger:
    """The logger of the study in ``folder``. Raises ConfigError, PluginError."""
    logger = chosen.call(chosen.spec.build, chosen.options, folder)
    _check_inherits(chosen, logger, Logger)
    return logger


def build_fitter(chosen: PluginConfig[FitterSpec]) -> Fitter:
    """The fitter. Raises ConfigError, PluginError."""
    fitter = chosen.call(chosen.spec.build, chosen.options)
    _check_inherits(chosen, fitter, Fitter)
    return fitter


def build_hyperparameters(chosen: PluginConfig[RecipeSpec], recipe_input: RecipeInput) -> Hyperparameters:
    """The recipe's hyperparameters for one run. Raises ConfigError, PluginError."""
    hyperparameters = chosen.call(chosen.spec.build, chosen.options, recipe_input)
    if not isinstance(hyperparameters, Hyperparameters):
        raise PluginError(f"recipe {chosen.name!r} returned {hyperparameters!r} instead of Hyperparameters")
    return hyperparameters


def list_slots(chosen: PluginConfig[DeviceSpec]) -> Sequence[Mapping[str, str]]:
    """Environment variables of each worker on this machine. Raises ConfigError, PluginError."""
    return chosen.call(chosen.spec.slots, chosen.options)


def check_argument(argument: str, value: object, base: type) -> None:
    """Raises ConfigError for a user's object that does not inherit from ``base``."""
    if not isinstance(value, base):
        raise ConfigError(f"{argument}: {_advice(value, base)}")


def _check_inherits(chosen: PluginConfig[S], value: object, base: type) -> None:
    if not isinstance(value, base):
        raise PluginError(f"{_describe(chosen)}: {_advice(value, base)}")


def _advice(value: object, base: type) -> str:
    name = type(value).__name__
    return (
        f"{name} does not inherit from {base.__name__}: write class {name}({base.__name__}), with "
        f"from flops_fit_core.plugins import {base.__name__}"
    )


def _describe(chosen: PluginConfig[S]) -> str:
    return f"{chosen.spec.kind} {chosen.name!r} ({chosen.offer.source})"
