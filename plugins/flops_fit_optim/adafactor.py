"""``adafactor``: Adam with a factored second moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from flops_fit_core.plugins import Options, RunInfo
from flops_fit_optim.options import Decay, Rate
from flops_fit_optim.placement import refuse_sharded

if TYPE_CHECKING:
    from torch import nn, optim


class AdafactorOptions(Options):
    """Adafactor (Shazeer & Stern 2018) with an external learning rate and no momentum. It stores the average of a
    matrix's squared gradient by rows and columns, so it needs very little memory."""

    lr: Rate = 0.001
    """Peak learning rate of embeddings, gains and biases, and of matrices at the recipe's base width. Steps are
    not scaled by the size of the weights."""
    decay_rate: Annotated[float, Field(lt=0, ge=-1)] = -0.8
    """At step t, the average of the squared gradient keeps a share of ``1 - t ** decay_rate``."""
    clip_threshold: Rate = 1.0
    """Largest root mean square of a step before ``lr``."""
    weight_decay: Decay = 0.0
    """Decoupled weight decay of matrices: a step shrinks them by ``lr * weight_decay`` at every width."""


def build_adafactor(options: AdafactorOptions, model: nn.Module, run: RunInfo) -> optim.Optimizer:
    """Build Adafactor. Learning rates scale with the width like Adam's."""
    from pytorch_optimizer import AdaFactor

    refuse_sharded("adafactor", model)
    optimizer: optim.Optimizer = AdaFactor(
        run.param_groups(model, options.lr, options.weight_decay),
        betas=(None, 0.999),
        decay_rate=options.decay_rate,
        clip_threshold=options.clip_threshold,
        # Both would override the learning rate of the schedule and the width scaling.
        scale_parameter=False,
        relative_step=False,
    )
    return optimizer
