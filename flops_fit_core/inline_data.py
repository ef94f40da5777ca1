"""A torch ``Dataset``, ``IterableDataset`` or ``DataLoader`` as a flops-fit Dataset.

Of a dataset with a length, ``heldout_share`` of its items, evenly spaced, are held out. Of a stream, its
first samples are held out and training starts behind them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops_fit_core.contracts import Batch
from flops_fit_core.errors import DataError
from flops_fit_core.identity import hash_item, identify_value, unidentified
from flops_fit_core.inline import copied
from flops_fit_core.records import content_hash
from flops_fit_core.tasks import CustomTask

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = 64
"""Items whose content identifies a dataset."""
REREAD = 4
"""Items that are read twice, to see that they are the same."""
STREAM_HELDOUT = 2048
"""Samples held out of a stream, where no held-out dataset is given."""


@dataclass(frozen=True)
class InlineData:
    """What ``find_optimal`` was given as data."""

    training: Any
    heldout: Any | None
    heldout_share: float
    loss_fn: Callable[[Any, Any], Any] | None
    tokens_per_sample: int | None
    unit: str | None
    fingerprint: str | None
    functions: tuple[str | None, ...] = (None,)
    """By :func:`identify_functions`, in the caller's process: a worker may not have their source text."""

    def open(self, seed: int) -> InlineDataset:
        """The dataset in the order of a seed."""
        return InlineDataset(self, seed)


class InlineDataset:
    """Implements ``Dataset`` (contracts.py) on torch's own dataset types."""

    bytes_per_token: float | None = None

    def __init__(self, data: InlineData, seed: int) -> None:
        from flops_fit_core.training.randomness import fixed_randomness

        self._seed = seed
        self._source, self._collate = unwrap(data.training)
        with fixed_randomness():  # items may be augmented at random
            self._look_at(data)

    def _look_at(self, data: InlineData) -> None:
        self._heldout_source = unwrap(data.heldout)[0] if data.heldout is not None else None
        self._is_stream = not _has_length(self._source)
        if self._is_stream:
            self._training: list[int] | None = None
        else:
            self._training, self._held = _split(
                len(self._source), data.heldout_share if self._heldout_source is None else 0.0
            )
        sample = self._collate(list(itertools.islice(self._items(), 2)))
        self.task = make_task(data, sample)
        count = len(self._training) if self._training is not None else None
        self.tokens: int | None = count * self.task.tokens_per_sample if count is not None else None
        self.fingerprint = content_hash(self._identities(data))

    def _identities(self, data: InlineData) -> list[Any]:
        if data.fingerprint:
            return [data.fingerprint, data.heldout_share, self.task.tokens_per_sample]
        loss, *collate = data.functions
        return [
            identify_source(self._source),
            identify_source(self._heldout_source) if self._heldout_source is not None else None,
            data.heldout_share,
            loss,
            self.task.tokens_per_sample,
            *collate,
        ]

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches by the dataset's own ``collate_fn``, from sample ``start``, again and again."""
        if self._is_stream:
            yield from self._stream_batches(batch_size, start)
        order = self._order(start)
        while True:
            yield self._fetch(self._source, list(itertools.islice(order, batch_size)))

    def _stream_batches(self, batch_size: int, start: int) -> Iterator[Batch]:
        samples = itertools.islice(self._stream(), start, None)
        while len(items := list(itertools.islice(samples, batch_size))) == batch_size:
            yield self._collate(items)
        if self._heldout_source is None:
            raise DataError(
                f"the stream ended before {batch_size} samples to train on came: its first "
                f"{STREAM_HELDOUT} are held out. Give more, or heldout=another_dataset"
            )
        raise DataError(
            f"the dataset ended after {len(items)} of the {batch_size} samples of a batch: it yields nothing "
            f"when it is iterated again"
        )

    def heldout(self, tokens: int, batch_size: int) -> Iterator[Batch]:
        """The first held-out samples, in the dataset's own order."""
        wanted = max(1, round(tokens / self.task.tokens_per_sample))
        batches = self._heldout_batches(wanted, batch_size)
        first = next(batches, None)
        if first is None:
            raise DataError("the held-out part is empty: give more data, or heldout=another_dataset")
        yield first
        yield from batches

    def _heldout_batches(self, wanted: int, batch_size: int) -> Iterator[Batch]:
        source = self._source if self._heldout_source is None else self._heldout_source
        if not _has_length(source):
            samples = itertools.islice(source, min(wanted, STREAM_HELDOUT) if source is self._source else wanted)
            while items := list(itertools.islice(samples, batch_size)):
                yield self._collate(items)
            return
        held = self._held if source is self._source else list(range(len(source)))
        for first in range(0, min(wanted, len(held)), batch_size):
            yield self._fetch(source, held[first : min(wanted, first + batch_size)])

    def _fetch(self, source: Any, indices: list[int]) -> Batch:
        """One batch of a dataset with a length; in one go where the dataset can."""
        from torch.utils.data import TensorDataset, default_collate

        if type(source) is TensorDataset and self._collate is default_collate:
            return [tensor[indices] for tensor in source.tensors]
        if hasattr(source, "__getitems__"):
            return self._collate(source.__getitems__(indices))
        return self._collate([source[index] for index in indices])

    def _items(self) -> Iterator[Any]:
        if self._is_stream:
            yield from self._source
        else:
            yield from (self._source[index] for index in range(len(self._source)))

    def _stream(self) -> Iterator[Any]:
        behind = 0 if self._heldout_source is not None else STREAM_HELDOUT
        while True:
            got_some = False
            for item in itertools.islice(self._source, behind, None):
                got_some = True
                yield item
            if not got_some:
                return

    def _order(self, start: int) -> Iterator[int]:
        """Indices of the training samples from position ``start``, shuffled anew each epoch."""
        import torch

        assert self._training is not None
        epoch, skip = divmod(start, len(self._training))
        while True:
            order = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            for place in torch.randperm(len(self._training), generator=order).tolist()[skip:]:
                yield self._training[place]
            epoch, skip = epoch + 1, 0


def _has_length(source: Any) -> bool:
    from torch.utils.data import IterableDataset

    # Of torch's iterable datasets, each has a __getitem__, which raises, and some have a length.
    is_iterable = isinstance(source, IterableDataset)
    return not is_iterable and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def unwrap(data: Any) -> tuple[Any, Callable[[list[Any]], Batch]]:
    """The dataset and the collate function of whatever was given.

    Raises DataError for what is no dataset, and for a DataLoader with a sampler of its own.
    """
    from torch.utils.data import (
        DataLoader,
        Dataset,
        IterableDataset,
        RandomSampler,
        SequentialSampler,
        default_collate,
    )

    if not isinstance(data, DataLoader):
        if isinstance(data, Iterator) and not isinstance(data, Dataset):
            raise DataError(
                f"dataset is an iterator ({type(data).__name__}), which can be gone through once, and every run "
                f"begins anew: give an IterableDataset whose __iter__ makes the iterator"
            )
        if not hasattr(data, "__getitem__") and not hasattr(data, "__iter__"):
            raise DataError(f"dataset must be a torch Dataset, IterableDataset or DataLoader, not {type(data)}")
        if hasattr(data, "__len__") and len(data) < 2:
            raise DataError(f"the dataset has {len(data)} items: there is nothing to train on")
        return data, default_collate
    is_stream = isinstance(data.dataset, IterableDataset)
    plain = is_stream or isinstance(data.sampler, RandomSampler | SequentialSampler)
    if data.batch_size is None or not plain:
        raise DataError(
            "a DataLoader with its own sampler or batches decides which samples a run sees, and so does a "
            "sweep: pass its dataset instead"
        )
    return data.dataset, data.collate_fn


def _split(length: int, share: float) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out, the latter evenly spaced."""
    held = round(length * share)
    if share > 0 and not 0 < held < length:
        raise DataError(
            f"{length} items cannot give a held-out share of {share:.0%}: give heldout=another_dataset"
        )
    out = {(2 * k + 1) * length // (2 * held) for k in range(held)} if held else set()
    return [index for index in range(length) if index not in out], sorted(out)


def identify_functions(data: Any, loss_fn: Callable[[Any, Any], Any] | None) -> tuple[str | None, ...]:
    """Of the loss function, and of a collate function other than torch's, what identifies it.

    Raises ConfigError, asking for ``fingerprint=``, where one cannot be identified.
    """
    from torch.utils.data import default_collate

    loss = identify_value(loss_fn, "loss_fn") if loss_fn is not None else None
    source, given = unwrap(data)
    collate: Any = given
    if getattr(collate, "__self__", None) is source:  # a method of the dataset
        collate = collate.__func__
    return (loss,) if collate is default_collate else (loss, identify_value(collate, "collate_fn"))


def identify_source(source: Any) -> str:
    """Type, length and a hash of 64 evenly spaced items; of a stream, its first 64.

    Raises ConfigError where the first items are others when they are read again.
    """
    name = f"{type(source).__module__}.{type(source).__qualname__}"
    if _has_length(source):
        length = len(source)
        picked = sorted({k * (length - 1) // max(1, SAMPLED - 1) for k in range(SAMPLED)})
        return content_hash([name, length, _hash_twice(lambda: (source[index] for index in picked))])
    return content_hash([name, _hash_twice(lambda: itertools.islice(source, SAMPLED))])


def _hash_twice(items: Callable[[], Iterator[Any]]) -> list[str]:
    """The hash of every item, of which the first few are read again."""
    from flops_fit_core.training.randomness import fixed_randomness

    with fixed_randomness():
        hashes = [hash_item(item) for item in items()]
    with fixed_randomness():
        again = [hash_item(item) for item in itertools.islice(items(), REREAD)]
    if again != hashes[:REREAD]:
        raise unidentified("dataset", "its first items are others when they are read again")
    return hashes


def make_task(data: InlineData, sample: Batch) -> CustomTask:
    """The task of the data: its loss (by default by the targets' type) and what one sample counts for."""
    targets = _targets(sample)
    per_sample = data.tokens_per_sample
    if per_sample is None:
        # A row of class numbers a sample is a sequence to predict; anything else is one prediction.
        per_sample = int(targets.shape[1]) if targets.ndim == 2 and not targets.is_floating_point() else 1
    return CustomTask(
        loss_fn=copied(data.loss_fn) if data.loss_fn is not None else default_loss,
        sample=sample,
        unit=data.unit or ("tokens" if per_sample > 1 else "samples"),
        tokens_per_sample=per_sample,
    )


def _targets(sample: Batch) -> Tensor:
    import torch

    found = sample
    if isinstance(sample, dict):
        if "labels" not in sample:
            raise DataError(f"a dict batch needs its targets under 'labels'; it has {', '.join(sample)}")
        found = sample["labels"]
    elif isinstance(sample, list | tuple):
        if len(sample) < 2:
            raise DataError("a batch must be (inputs, targets), a dict with 'labels', or a tensor")
        found = sample[1]
    if not isinstance(found, torch.Tensor):
        raise DataError(f"targets must be a tensor, not {type(found).__name__}: give the DataLoader's collate_fn")
    return found


def default_loss(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats for class numbers, mean squared error for real targets."""
    from torch.nn import functional

    outputs = getattr(outputs, "logits", outputs)
    if targets.is_floating_point():
        return functional.mse_loss(outputs.float(), targets.reshape(outputs.shape))
    return functional.cross_entropy(outputs.float().flatten(0, -2), targets.flatten())
