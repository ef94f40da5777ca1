"""Optimizers that evaluate other weights than they train, such as Schedule-Free and weight averaging.

They have two modes, as ``torch.nn.Module`` has: ``optimizer.train()`` puts the weights to train into the model,
``optimizer.eval()`` the weights to evaluate. Runs are in train mode except during an evaluation, and so are their
checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import optim


def has_modes(optimizer: optim.Optimizer) -> bool:
    """Whether an optimizer has ``train()`` and ``eval()``."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def train_mode(optimizer: optim.Optimizer) -> None:
    """Call before training steps. Does nothing to an optimizer in train mode or without modes."""
    if has_modes(optimizer):
        modes: Any = optimizer
        modes.train()


@contextmanager
def eval_mode(optimizer: optim.Optimizer) -> Iterator[None]:
    """Context of an evaluation. Afterwards the optimizer is in train mode, and the weights are bit-identical.

    Switching the mode twice rounds the weights, so they are copied: evaluations must not change a run.
    """
    if not has_modes(optimizer):
        yield
        return
    modes: Any = optimizer
    weights = [param for group in optimizer.param_groups for param in group["params"]]
    copies = _copies(weights)
    modes.eval()
    try:
        yield
    finally:
        modes.train()
        with torch.no_grad():
            for weight, value in zip(weights, copies, strict=True):
                weight.copy_(value)


def _copies(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies on the same device, or in CPU memory if they do not fit."""
    try:
        return [weight.detach().clone() for weight in weights]
    except torch.OutOfMemoryError:
        pass  # the copies made so far are freed with the error
    return [weight.detach().to("cpu", copy=True) for weight in weights]
