"""Where a model's parameters are, and which optimizers can train them there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_fit_core import RunFailed

if TYPE_CHECKING:
    from torch import nn


def fused(model: nn.Module) -> bool:
    """Whether torch has a fused AdamW where the model is."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())


def refuse_sharded(name: str, model: nn.Module) -> None:
    """Raises RunFailed for weights that are spread over devices (FSDP), which this optimizer takes for whole."""
    from torch.distributed.tensor import DTensor

    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise RunFailed(
            f'optimizer {name!r} needs every weight whole on its device, and trainer.parallel = "fsdp" spreads '
            f'them: write trainer.parallel = "ddp", or optimizer "adamw"'
        )
