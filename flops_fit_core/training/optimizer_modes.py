"""Optimizers whose weights to train are not the weights to use: schedule-free ones, averages of weights.

They have two modes, as ``torch.nn.Module`` has: ``optimizer.train()`` puts the weights that are trained into the
model, ``optimizer.eval()`` those that are to be evaluated. A run is in train mode, and its checkpoints are, except
while its held-out loss is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import optim


def has_modes(optimizer: optim.Optimizer) -> bool:
    """Whether it has ``train()`` and ``eval()``."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def train_mode(optimizer: optim.Optimizer) -> None:
    """Before steps. Does nothing to an optimizer that is in this mode, or has none."""
    if has_modes(optimizer):
        modal: Any = optimizer
        modal.train()


@contextmanager
def eval_mode(optimizer: optim.Optimizer) -> Iterator[None]:
    """While the model is evaluated. Afterwards it is in train mode with the weights that it had, bit for bit: the
    way there and back rounds, and a run that is evaluated more often must not be another run."""
    if not has_modes(optimizer):
        yield
        return
    modal: Any = optimizer
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = _copies(weights)
    modal.eval()
    try:
        yield
    finally:
        modal.train()
        with torch.no_grad():
            for weight, value in zip(weights, trained, strict=True):
                weight.copy_(value)


def _copies(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """On their device, or in the processor's memory where they do not fit beside the model."""
    try:
        return [weight.detach().clone() for weight in weights]
    except torch.OutOfMemoryError:
        pass  # The copies made so far are freed with the error.
    return [weight.detach().to("cpu", copy=True) for weight in weights]
