"""Parts of a model's outputs, which may be nested containers of tensors: samples, positions, doubled batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def select_samples(outputs: Any, samples: int, part: slice) -> Any:
    """Some samples of a model's outputs."""
    return map_tensors(outputs, lambda tensor: tensor[part] if tensor.ndim and len(tensor) == samples else tensor)


def roll(outputs: Any, dim: int) -> Any:
    return map_tensors(outputs, lambda tensor: tensor.roll(1, dim) if tensor.ndim > 2 else tensor)


def select_positions(outputs: Any, length: int, part: slice) -> Any:
    """Some positions of a model's outputs: along the first dimension of this length after the sample dimension."""

    def cut(tensor: Tensor) -> Tensor:
        for dim in range(1, tensor.ndim):
            if tensor.shape[dim] == length:
                return tensor[(slice(None),) * dim + (part,)]
        return tensor

    return map_tensors(outputs, cut)


def double(outputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
    import torch

    samples = len(targets)
    doubled = map_tensors(outputs, lambda t: torch.cat([t, t]) if t.ndim and len(t) == samples else t)
    return doubled, torch.cat([targets, targets])


def map_tensors(outputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    import torch
    from torch.utils._pytree import tree_map

    return tree_map(lambda item: change(item) if isinstance(item, torch.Tensor) else item, outputs)
