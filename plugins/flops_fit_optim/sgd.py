"""``sgd``: stochastic gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from flops_fit_core.plugins import Options, RunInfo
from flops_fit_optim.options import Decay, Momentum, Rate

if TYPE_CHECKING:
    from torch import nn, optim


class SGDOptions(Options):
    """Stochastic gradient descent."""

    lr: Rate = 0.01
    """Peak learning rate, the same for all parameters."""
    momentum: Momentum = 0.0
    """Share of the last step that is added to a step."""
    nesterov: bool = False
    """Whether to use Nesterov momentum. Requires ``momentum``."""
    weight_decay: Decay = 0.0
    """Weight decay of matrices, added to the gradient (L2)."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGDOptions:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0, such as momentum = 0.9")
        return self


def build_sgd(options: SGDOptions, model: nn.Module, run: RunInfo) -> optim.Optimizer:
    """Build SGD. All parameters have the same learning rate, because width scaling is derived for Adam only."""
    import torch

    groups = run.param_groups(model, options.lr, options.weight_decay)
    return torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, foreach=False)
