"""``adamw``: Adam with decoupled weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_fit_core.plugins import Options, RunInfo
from flops_fit_optim.options import Decay, Momentum, Rate
from flops_fit_optim.placement import fused

if TYPE_CHECKING:
    from torch import nn, optim


class AdamWOptions(Options):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    lr: Rate = 0.001
    """Peak learning rate of embeddings, gains and biases, and of matrices at the recipe's base width. The
    recipe ``width-scaled`` sets 0.008 for families with a width."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay of the averages of the gradient and of its square. The recipe
    ``width-scaled`` sets 0.9 and 0.95."""
    eps: Rate = 1e-8
    """Added to the square root of the squared gradient's average."""
    weight_decay: Decay = 0.0
    """Decoupled weight decay of matrices: a step shrinks them by ``lr * weight_decay`` at every width. If the
    recipe scales a matrix's learning rate, its decay is divided by the same factor (Wang & Aitchison 2024)."""


def build_adamw(options: AdamWOptions, model: nn.Module, run: RunInfo) -> optim.Optimizer:
    """Build AdamW, with torch's fused kernel if it is available."""
    import torch

    groups = run.param_groups(model, options.lr, options.weight_decay)
    return torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, fused=fused(model))
