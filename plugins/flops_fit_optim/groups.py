"""A family's parameter groups as the optimizers of torch take them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flops_fit_core import RunFailed
from flops_fit_core.plugins import ParameterGroup, RunView

if TYPE_CHECKING:
    from torch import nn


def adam_groups(
    groups: Iterable[ParameterGroup], run: RunView, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """For steps whose size does not depend on the gradient's: ``lr * run.lr_scale(group)``.

    A step shrinks what may decay by ``lr * weight_decay`` at every width (Wang & Aitchison 2024).
    """
    return [scaled(group, lr, weight_decay, run.lr_scale(group)) for group in groups]


def scaled(group: ParameterGroup, lr: float, weight_decay: float, scale: float) -> dict[str, Any]:
    """One group at ``lr * scale``, its decay divided by the same factor."""
    decay = weight_decay / scale if group.decay else 0.0
    return {"params": list(group.parameters), "lr": lr * scale, "weight_decay": decay}


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
