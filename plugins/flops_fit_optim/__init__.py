"""Optimizers that ship with torch: ``sgd`` and ``adamw``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from flops_fit_core import OptimizerSpec, Options, RunView, hookimpl

if TYPE_CHECKING:
    from torch import nn, optim

Momentum = Annotated[float, Field(ge=0, lt=1)]


class SGDOptions(Options):
    """Stochastic gradient descent."""

    lr: Annotated[float, Field(gt=0)] = 0.01
    """Peak learning rate, the same for all parameters."""
    momentum: Momentum = 0.0
    """Share of the last step that is taken again."""
    nesterov: bool = False
    """Nesterov's momentum; needs ``momentum``."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Added to the gradient (L2), of matrices."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGDOptions:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0, such as momentum = 0.9")
        return self


class AdamWOptions(Options):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    lr: Annotated[float, Field(gt=0)] = 0.001
    """Peak learning rate of embeddings, gains and biases, and of matrices at the recipe's base width. The
    default recipe says 0.008 for families that name their width."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay of the averages of the gradient and of its square; the default recipe says 0.9 and 0.95."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the squared gradient's average."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of matrices. A step shrinks them by ``lr * weight_decay`` at every width: where the recipe scales a
    matrix's learning rate, its decay is divided by the same factor (Wang & Aitchison 2024)."""


def build_sgd(options: SGDOptions, model: nn.Module, run: RunView) -> optim.Optimizer:
    """One learning rate for all: width multipliers are derived for Adam-like steps only."""
    import torch

    groups: list[dict[str, Any]] = [
        {"params": list(group.parameters), "weight_decay": options.weight_decay if group.decay else 0.0}
        for group in run.groups(model)
    ]
    return torch.optim.SGD(
        groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov, foreach=False
    )


def build_adamw(options: AdamWOptions, model: nn.Module, run: RunView) -> optim.Optimizer:
    """A group's learning rate is ``lr * run.lr_scale(group)``. Fused where torch has a fused kernel."""
    import torch

    groups: list[dict[str, Any]] = []
    for group in run.groups(model):
        scale = run.lr_scale(group)
        decay = options.weight_decay / scale if group.decay else 0.0
        groups.append({"params": list(group.parameters), "lr": options.lr * scale, "weight_decay": decay})
    on_cpu_or_cuda = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    return torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, fused=on_cpu_or_cuda)


@hookimpl
def flops_fit_optimizers() -> Iterable[OptimizerSpec]:
    """Offer ``sgd`` and ``adamw``."""
    yield OptimizerSpec(name="sgd", options=SGDOptions, build=build_sgd)
    yield OptimizerSpec(name="adamw", options=AdamWOptions, build=build_adamw, adam_like=True)
