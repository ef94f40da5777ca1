"""Checks of the device and the sharding of a model's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_fit_core import RunFailed

if TYPE_CHECKING:
    from torch import nn


def fused(model: nn.Module) -> bool:
    """Whether torch has a fused AdamW for the model's device."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())


def refuse_sharded(name: str, model: nn.Module) -> None:
    """Raise RunFailed for weights that are sharded over devices (FSDP), which the optimizer does not support."""
    from torch.distributed.tensor import DTensor

    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise RunFailed(
            f'optimizer {name!r} needs complete weights on its device, and trainer.parallel = "fsdp" shards them: '
            f'write trainer.parallel = "ddp", or optimizer "adamw"'
        )
