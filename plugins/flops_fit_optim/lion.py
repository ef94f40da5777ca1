"""``lion``: the sign of a momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_fit_core.plugins import Options, RunInfo
from flops_fit_optim.options import Decay, Momentum, Rate

if TYPE_CHECKING:
    from torch import nn, optim


class LionOptions(Options):
    """Lion (Chen et al. 2023, "Symbolic discovery of optimization algorithms"): every entry of a step has the size
    of the learning rate. It keeps one number a parameter, where Adam keeps two."""

    lr: Rate = 0.0001
    """Peak learning rate of embeddings, gains and biases, and of matrices at the recipe's base width. Recipes give
    0.3 of what they give AdamW (Chen et al. say a third to a tenth)."""
    beta1: Momentum = 0.9
    """Share of the momentum in what the sign is taken of. Recipes' betas are Adam's, and not asked for."""
    beta2: Momentum = 0.99
    """Decay of the momentum."""
    weight_decay: Decay = 0.0
    """Of matrices, decoupled: a step shrinks them by ``lr * weight_decay`` at every width. With a smaller ``lr``
    than AdamW's, it takes as much more to shrink them as fast."""


def build_lion(options: LionOptions, model: nn.Module, run: RunInfo) -> optim.Optimizer:
    """Learning rates scale with the width as Adam's: all entries of a step have the same size."""
    from pytorch_optimizer import Lion

    groups = run.param_groups(model, options.lr, options.weight_decay)
    optimizer: optim.Optimizer = Lion(groups, betas=(options.beta1, options.beta2))
    return optimizer
