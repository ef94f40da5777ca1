"""Trainers: ``torch`` (core's own loop), ``command`` (any program) and ``lightning`` (a LightningModule)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flops_fit_core import RunSpec
from flops_fit_core.plugins import Trainer, TrainerSpec, hookimpl
from flops_fit_trainers.command_options import CommandOptions
from flops_fit_trainers.lightning_options import LightningOptions
from flops_fit_trainers.torch_options import TorchOptions


def build_torch(options: TorchOptions) -> Trainer:
    """Import torch only now."""
    from flops_fit_core.training import TorchTrainer, TrainOptions

    return TorchTrainer(TrainOptions(**options.model_dump(exclude={"vmap_runs"})))


def build_command(options: CommandOptions) -> Trainer:
    """Starts nothing yet."""
    from flops_fit_trainers.command import CommandTrainer

    return CommandTrainer(options)


def check_command(options: CommandOptions, run: RunSpec, options_of: Callable[[str], Mapping[str, Any]]) -> None:
    """Whether every placeholder has a value. Raises ConfigError."""
    from flops_fit_trainers import command

    command.check_command(options, run, options_of)


def check_lightning(
    options: LightningOptions, run: RunSpec, options_of: Callable[[str], Mapping[str, Any]]
) -> None:
    """Whether the module can be imported and called. Raises ConfigError."""
    from flops_fit_trainers import lightning_module

    lightning_module.check_module(options)


def build_lightning(options: LightningOptions) -> Trainer:
    """Imports Lightning only now."""
    from flops_fit_trainers.lightning_trainer import LightningTrainer

    return LightningTrainer(options)


@hookimpl
def flops_fit_trainers() -> Iterable[TrainerSpec]:
    """Offer ``torch``, ``command`` and ``lightning``."""
    yield TrainerSpec(
        name="torch",
        options=TorchOptions,
        build=build_torch,
        can=frozenset({"branch", "checkpoint", "vmap_runs", "distribute"}),
    )
    yield TrainerSpec(
        name="command", options=CommandOptions, build=build_command, can=frozenset({"launch"}), check=check_command
    )
    yield TrainerSpec(
        name="lightning",
        options=LightningOptions,
        build=build_lightning,
        can=frozenset({"checkpoint"}),
        check=check_lightning,
        requires=("lightning>=2.6",),
        extra="lightning",
    )
