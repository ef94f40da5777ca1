"""Batches of any shape: a tensor, or lists, tuples and dicts of tensors with samples along the first dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flops_fit_core.plugins.protocols import Batch, num_samples


def to_device(batch: Batch, device: str) -> Batch:
    """The batch with its tensors on ``device``. Copies from pinned memory do not wait for the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(item, device) for key, item in batch.items()}
    if isinstance(batch, list | tuple):
        return [to_device(item, device) for item in batch]
    return batch


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which a GPU can copy while it computes."""
    if isinstance(batch, torch.Tensor):
        return batch.pin_memory()
    if isinstance(batch, dict):
        return {key: pinned(item) for key, item in batch.items()}
    if isinstance(batch, list | tuple):
        return [pinned(item) for item in batch]
    return batch


def length(batch: Batch) -> int:
    """Number of samples in a batch. Raises ValueError for a batch without a tensor."""
    return num_samples(batch)


def part(batch: Batch, first: int, last: int) -> Batch:
    """Samples ``first`` to ``last - 1`` of a batch. Numbers, and tensors with one row, are shared by all samples.

    Raises ValueError for any other tensor without one row per sample.
    """
    samples = length(batch)
    return batch if first <= 0 and last >= samples else _part(batch, first, last, samples)


def _part(batch: Batch, first: int, last: int, samples: int) -> Batch:
    if isinstance(batch, torch.Tensor):
        if batch.ndim and len(batch) == samples:
            return batch[first:last]
        if not batch.ndim or len(batch) == 1:
            return batch
        raise ValueError(
            f"a batch of {samples} samples cannot be divided: it has a tensor of shape {tuple(batch.shape)}, "
            "with another first dimension. Give the tensor one row per sample, or a first dimension of 1 if all "
            "samples share it"
        )
    if isinstance(batch, dict):
        return {key: _part(item, first, last, samples) for key, item in batch.items()}
    if isinstance(batch, list | tuple):
        return [_part(item, first, last, samples) for item in batch]
    return batch


def stacked(batches: Sequence[Batch]) -> Batch:
    """Batches of one shape along a new first dimension."""
    first = batches[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(list(batches))
    if isinstance(first, dict):
        return {key: stacked([batch[key] for batch in batches]) for key in first}
    return [stacked(items) for items in zip(*batches, strict=True)]
