"""``schedule-free``: AdamW with averaged weights instead of a learning rate that falls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from flops_fit_core.plugins import Options, RunInfo
from flops_fit_optim.options import Decay, Momentum, Rate

if TYPE_CHECKING:
    from torch import nn, optim

Interpolation = Annotated[float, Field(gt=0, lt=1)]


class ScheduleFreeOptions(Options):
    """Schedule-Free AdamW (Defazio et al. 2024, "The road less scheduled"): gradients are computed at points
    between a fast sequence and its average, and the average is the model. Its default schedule is ``constant``,
    and the only warmup is that of the schedule."""

    lr: Rate = 0.0025
    """Peak learning rate of embeddings, gains and biases, and of matrices at the recipe's base width. Recipes set
    twice AdamW's learning rate (Defazio et al. recommend one to ten times)."""
    betas: tuple[Interpolation, Momentum] = (0.9, 0.999)
    """Share of the average in the point at which gradients are computed, and decay of the squared gradient's
    average. The recipe ``width-scaled`` sets 0.9 and 0.95."""
    eps: Rate = 1e-8
    """Added to the square root of the squared gradient's average."""
    weight_decay: Decay = 0.0
    """Decoupled weight decay of matrices: a step shrinks them by ``lr * weight_decay`` at every width."""


def build_schedule_free(options: ScheduleFreeOptions, model: nn.Module, run: RunInfo) -> optim.Optimizer:
    """Build Schedule-Free AdamW, which has the modes ``train()`` and ``eval()``."""
    from schedulefree import AdamWScheduleFree

    groups = run.param_groups(model, options.lr, options.weight_decay)
    optimizer: optim.Optimizer = AdamWScheduleFree(groups, betas=options.betas, eps=options.eps)
    return optimizer
