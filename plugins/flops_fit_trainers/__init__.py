"""Trainers: ``torch`` (core's own loop), ``command`` (any program) and ``lightning`` (a LightningModule)."""

from __future__ import annotations

from collections.abc import Iterable

from flops_fit_core import TrainerSpec, hookimpl
from flops_fit_trainers.command_options import CommandOptions, build_command
from flops_fit_trainers.lightning_options import LightningOptions, build_lightning
from flops_fit_trainers.torch_options import TorchOptions, build_torch


@hookimpl
def flops_fit_trainers() -> Iterable[TrainerSpec]:
    """Offer ``torch``, ``command`` and ``lightning``."""
    yield TrainerSpec(
        name="torch",
        options=TorchOptions,
        build=build_torch,
        can=frozenset({"branch", "checkpoint", "pack", "distribute"}),
    )
    yield TrainerSpec(name="command", options=CommandOptions, build=build_command, can=frozenset({"launch"}))
    yield TrainerSpec(
        name="lightning",
        options=LightningOptions,
        build=build_lightning,
        requires=("lightning>=2.4",),
        extra="lightning",
    )
