"""Tensors and samples of batches. Imports no pytest, because worker processes import this module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from flops_fit_core.plugins.protocols import Batch

if TYPE_CHECKING:
    from torch import Tensor


def tensors(batch: Batch) -> Iterator[Tensor]:
    """The tensors of a batch, in an order that depends on its structure only."""
    import torch

    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for key in sorted(batch):
            yield from tensors(batch[key])
    elif isinstance(batch, list | tuple):
        for item in batch:
            yield from tensors(item)


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Some samples of a batch, in a batch of the same structure."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {key: part(item, start, stop) for key, item in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(part(item, start, stop) for item in batch)
    return batch


def samples_of(batches: Iterable[Batch]) -> list[bytes]:
    """Each sample as bytes."""
    samples = []
    for batch in batches:
        columns = [tensor.numpy() for tensor in tensors(batch)]
        samples += [b"|".join(column[row].tobytes() for column in columns) for row in range(len(columns[0]))]
    return samples
