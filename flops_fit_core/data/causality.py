"""Tests whether a model's output at a position depends on later inputs, which are its targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-4
"""Change of a logit, relative to the largest logit, that counts as rounding; models are tested in float32."""


def fill_zero_weights(model: nn.Module) -> None:
    """Set weights that are all zero, such as those of a head, to small random values: they could hide a
    dependence."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for param in model.parameters():
        if param.numel() and not bool(param.detach().any()):
            param.data = torch.randn(param.shape, generator=generator) * 0.02


def depends_on_later_inputs(logits: Callable[[Tensor], Any], ids: Tensor) -> bool | None:
    """Whether any logit changes with an input at a later position. None if this cannot be tested.

    Args:
        logits: Returns the logits, (batch, positions, ...), of a model in evaluation mode for ids.
        ids: Class numbers, (batch, positions), with at least two distinct values.
    """
    import torch

    if ids.ndim != 2 or ids.shape[1] < 2:
        return None
    length = ids.shape[1]
    before = logits(ids)
    if not isinstance(before, torch.Tensor) or before.shape[:2] != ids.shape:
        return None
    limit = TOLERANCE * max(1e-6, float(before.abs().max()))
    for position in {length // 2, length - 1}:
        changed = ids.clone()
        changed[:, position] = other_values(ids)[:, position]
        difference = (logits(changed)[:, :position] - before[:, :position]).abs().max()
        if not float(difference) <= limit:
            return True
    return False


def other_values(ids: Tensor) -> Tensor:
    """For each id, a different id from the same tensor; the ids themselves if all are equal."""
    import torch

    values: Tensor = torch.unique(ids)
    if len(values) < 2:
        return ids
    following: Tensor = values[(torch.searchsorted(values, ids.contiguous()) + 1) % len(values)]
    return following
