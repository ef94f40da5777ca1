"""``lion``: the sign of a momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_fit_core.plugins import Options, RunInfo
from flops_fit_optim.options import Decay, Momentum, Rate

if TYPE_CHECKING:
    from torch import nn, optim


class LionOptions(Options):
    """Lion (Chen et al. 2023, "Symbolic discovery of optimization algorithms"): every entry of a step has the size
    of the learning rate. It stores one number per parameter, Adam two."""

    lr: Rate = 0.0001
    """Peak learning rate of embeddings, gains and biases, and of matrices at the recipe's base width. Recipes set
    0.3 of AdamW's learning rate (Chen et al. recommend a third to a tenth)."""
    beta1: Momentum = 0.9
    """Share of the momentum in the average of which the sign is taken. Recipes do not set it, because their betas
    are for Adam."""
    beta2: Momentum = 0.99
    """Decay of the momentum."""
    weight_decay: Decay = 0.0
    """Decoupled weight decay of matrices: a step shrinks them by ``lr * weight_decay`` at every width. With an
    ``lr`` smaller than AdamW's, a proportionally larger value has the same effect."""


def build_lion(options: LionOptions, model: nn.Module, run: RunInfo) -> optim.Optimizer:
    """Build Lion. Learning rates scale with the width like Adam's, because all entries of a step have equal
    size."""
    from pytorch_optimizer import Lion

    groups = run.param_groups(model, options.lr, options.weight_decay)
    optimizer: optim.Optimizer = Lion(groups, betas=(options.beta1, options.beta2))
    return optimizer
