"""Batches of any shape: a tensor, or lists, tuples and dicts of tensors with samples along the first dimension."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import torch

from flops_fit_core.plugins.protocols import Batch, num_samples


def to_device(batch: Batch, device: str) -> Batch:
    """The batch with its tensors on ``device``; copies do not wait where the memory is pinned."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(item, device) for key, item in batch.items()}
    if isinstance(batch, list | tuple):
        return [to_device(item, device) for item in batch]
    return batch


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which a GPU copies while it computes."""
    if isinstance(batch, torch.Tensor):
        return batch.pin_memory()
    if isinstance(batch, dict):
        return {key: pinned(item) for key, item in batch.items()}
    if isinstance(batch, list | tuple):
        return [pinned(item) for item in batch]
    return batch


def length(batch: Batch) -> int:
    """Samples in a batch. Raises ValueError for a batch without tensors."""
    return num_samples(batch)


def part(batch: Batch, first: int, last: int) -> Batch:
    """Samples ``first`` to ``last - 1``. Numbers, and tensors with a first dimension of 1, belong to all of them.

    Raises ValueError for another tensor that does not have one row for each sample.
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
            "whose first dimension is not the samples'. Give it one row for each sample, or a first dimension of "
            "1 where all share it"
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


def prefetched(batches: Iterator[Batch], ahead: int = 3) -> Iterator[Batch]:
    """The same batches, pinned, made by a thread up to ``ahead`` before they are asked for.

    What the thread raises is raised here, in its place.
    """
    fetcher = _Fetcher(batches, ahead)
    fetcher.start()
    try:
        yield from fetcher.items()
    finally:
        fetcher.stopping.set()


class _Fetcher(threading.Thread):
    def __init__(self, batches: Iterator[Batch], ahead: int) -> None:
        super().__init__(daemon=True, name="batches")
        self.stopping = threading.Event()
        self._batches = batches
        self._ready: queue.Queue[tuple[Batch, BaseException | None]] = queue.Queue(ahead)

    def run(self) -> None:
        try:
            for batch in self._batches:
                self._put(pinned(batch), None)
                if self.stopping.is_set():
                    return
            self._put(None, StopIteration())
        except BaseException as error:
            self._put(None, error)

    def items(self) -> Iterator[Batch]:
        while True:
            batch, error = self._ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch

    def _put(self, batch: Batch, error: BaseException | None) -> None:
        while not self.stopping.is_set():
            try:
                self._ready.put((batch, error), timeout=0.2)
            except queue.Full:
                continue
            return
