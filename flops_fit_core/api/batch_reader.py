"""Batches of a torch dataset that are the same whenever they are read, even if items are augmented at random."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from flops_fit_core.api.data_checks.first_batch import plain
from flops_fit_core.api.sources import REREAD, has_length, eval_collate, unwrap
from flops_fit_core.api.streams import StreamPasses
from flops_fit_core.plugins.protocols import Batch
from flops_fit_core.records import content_hash

Position = tuple[int, int]
"""(seed, position) of a batch: the seed of its order, and the position of its first sample in that order. Random
items and collate functions draw from generators seeded by it."""


class BatchReader:
    """Reads and collates the items of a dataset.

    Args:
        training: A torch dataset or DataLoader, or a SeededStream.
        eval_dataset: Separate held-out data; they may have their own collate function.
    """

    def __init__(self, training: Any, eval_dataset: Any | None) -> None:
        self.source, self.collate_fn = unwrap(training)
        self._eval_collate = eval_collate(eval_dataset)
        self.is_stream = not has_length(self.source)

    def first_items(self) -> Iterator[Any]:
        """Items that are the same for every seed."""
        if self.is_stream:
            yield from StreamPasses(self.source, 0).read(0)
        else:
            yield from (self.source[index] for index in range(len(self.source)))

    def fetch(self, source: Any, indices: list[int], position: Position, *, is_heldout: bool = False) -> Batch:
        """A batch of a dataset with a length.

        Args:
            source: The training dataset, or separate held-out data.
            indices: Indices of the items.
            position: Seeds random items and collate functions.
            is_heldout: Whether ``source`` is separate held-out data.
        """
        from torch.utils.data import TensorDataset, default_collate

        from flops_fit_core.training.rng import fixed_randomness

        has_own_collate = is_heldout and self._eval_collate is not None
        if type(source) is TensorDataset and self.collate_fn is default_collate and not has_own_collate:
            return [tensor[indices] for tensor in source.tensors]
        if self.has_random_items:
            items = []
            for offset, index in enumerate(indices):
                with fixed_randomness(_item_seed(position, offset)):
                    items.append(source[index])
        elif hasattr(source, "__getitems__"):
            items = source.__getitems__(indices)
        else:
            items = [source[index] for index in indices]
        return self.collate(items, position, is_heldout=is_heldout)

    def collate(self, items: list[Any], position: Position, *, is_heldout: bool = False) -> Batch:
        """A batch of items; ``position`` seeds a random collate function."""
        from flops_fit_core.training.rng import fixed_randomness

        own_collate = self._eval_collate if is_heldout else None
        if own_collate is None and not self.has_random_collate:
            return plain(self.collate_fn(items))
        with fixed_randomness(_collate_seed(position)):
            return plain((own_collate or self.collate_fn)(items))

    @property
    def has_random_items(self) -> bool:
        """Whether items of a dataset with a length draw random numbers. A stream's passes are seeded instead."""
        return self._draws[0] and not self.is_stream

    @property
    def has_random_collate(self) -> bool:
        """Whether the collate function draws random numbers."""
        return self._draws[1]

    @cached_property
    def _draws(self) -> tuple[bool, bool]:
        """Whether reading the first items, and collating them, draws random numbers."""
        from flops_fit_core.training.rng import draws_random_numbers

        items: list[Any] = []
        reading = draws_random_numbers(lambda: items.extend(itertools.islice(self.first_items(), REREAD)))
        collating = draws_random_numbers(lambda: self.collate_fn(items[:REREAD]))
        return reading, collating


def _item_seed(position: Position, offset: int) -> int:
    seed, first = position
    return int(content_hash(["item", seed, first + offset])[:8], 16)


def _collate_seed(position: Position) -> int:
    seed, first = position
    return int(content_hash(["batch", seed, first])[:8], 16)
