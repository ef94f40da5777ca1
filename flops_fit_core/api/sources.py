"""Torch datasets and DataLoaders: their type, their split into training and held-out items, their identity."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from flops_fit_core.api.fingerprint.objects import hash_item, identify_callable, identify_value, unidentified
from flops_fit_core.api.streams import SeededStream
from flops_fit_core.errors import DataError
from flops_fit_core.plugins.protocols import Batch
from flops_fit_core.records import content_hash

SAMPLED = 64
"""Number of items that identify a dataset by their content."""
REREAD = 4
"""Number of items that are read twice, to check that they do not change."""


def has_length(source: Any) -> bool:
    """Whether a dataset has a length and is read by index."""
    from torch.utils.data import IterableDataset

    # Every torch IterableDataset has a __getitem__, which raises, and some have a length.
    is_iterable = isinstance(source, IterableDataset)
    return not is_iterable and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def unwrap(data: Any, least: int = 2) -> tuple[Any, Callable[[list[Any]], Batch]]:
    """The dataset and the collate function of a dataset, a DataLoader or a SeededStream.

    Raises DataError for other objects, for a dataset with fewer than ``least`` items, and for a DataLoader with a
    custom sampler or custom batches.
    """
    from torch.utils.data import (
        DataLoader,
        Dataset,
        IterableDataset,
        RandomSampler,
        SequentialSampler,
        default_collate,
    )

    if isinstance(data, SeededStream):
        return data, default_collate
    if not isinstance(data, DataLoader):
        if isinstance(data, Iterator) and not isinstance(data, Dataset):
            raise DataError(
                f"dataset is an iterator ({type(data).__name__}), which can be read only once, but every run "
                f"reads it from its start: give an IterableDataset with an __iter__ that makes the iterator"
            )
        if not hasattr(data, "__getitem__") and not hasattr(data, "__iter__"):
            raise DataError(f"dataset must be a torch Dataset, IterableDataset or DataLoader, not {type(data)}")
        if hasattr(data, "__len__") and len(data) < least:
            name, purpose = ("dataset", "train on") if least > 1 else ("eval_dataset", "measure the loss on")
            raise DataError(f"{name} has {len(data)} items: give at least {least} to {purpose}")
        return data, default_collate
    is_stream = isinstance(data.dataset, IterableDataset)
    has_default_sampler = is_stream or isinstance(data.sampler, RandomSampler | SequentialSampler)
    if data.batch_size is None or not has_default_sampler:
        raise DataError(
            "the DataLoader has its own sampler or batches, but the sweep chooses the samples of a run: pass its "
            "dataset instead"
        )
    return data.dataset, data.collate_fn


def eval_collate(eval_dataset: Any) -> Callable[[list[Any]], Batch] | None:
    """The custom collate function of a held-out DataLoader. None: that of the training data."""
    from torch.utils.data import DataLoader, default_collate

    collate = eval_dataset.collate_fn if isinstance(eval_dataset, DataLoader) else default_collate
    return None if collate is default_collate else collate


def split_indices(length: int, share: float) -> tuple[list[int], list[int]]:
    """Indices to train on, and evenly spaced indices to hold out.

    Raises DataError if the share leaves no item to train on or to hold out.
    """
    count = round(length * share)
    if share > 0 and not 0 < count < length:
        raise DataError(
            f"{length} items cannot be split with a held-out share of {share:.0%}: give "
            f"eval_dataset=another_dataset"
        )
    held_out = {(2 * k + 1) * length // (2 * count) for k in range(count)} if count else set()
    return [index for index in range(length) if index not in held_out], sorted(held_out)


def identify_functions(
    data: Any, loss_fn: Callable[[Any, Any], Any] | None, eval_dataset: Any = None
) -> tuple[str | None, ...]:
    """Fingerprints of the loss function and of collate functions other than torch's.

    Raises ConfigError, asking for ``fingerprint=``, if a function cannot be identified.
    """
    from torch.utils.data import default_collate

    loss = identify_value(loss_fn, "loss_fn") if loss_fn is not None else None
    source, collate = unwrap(data)
    functions = [loss]
    if collate is not default_collate:
        functions.append(identify_value(_function_of(collate, source), "collate_fn"))
    custom_collate = eval_collate(eval_dataset)
    if custom_collate is not None:
        heldout_function = _function_of(custom_collate, unwrap(eval_dataset, 1)[0])
        if heldout_function is not _function_of(collate, source):
            functions.append(f"eval_dataset: {identify_value(heldout_function, 'the collate_fn of eval_dataset')}")
    return tuple(functions)


def _function_of(collate: Any, source: Any) -> Any:
    """The function of a collate method of the dataset: the dataset's content is identified separately."""
    return collate.__func__ if getattr(collate, "__self__", None) is source else collate


def identify_source(source: Any) -> str:
    """A hash of the type, the length and 64 evenly spaced items; of a stream, its first 64 samples.

    Raises ConfigError if the first items change when they are read a second time.
    """
    if isinstance(source, SeededStream):
        items = _hash_twice(lambda: itertools.islice(source(0), SAMPLED))
        return content_hash([identify_callable(source.make, {}, "dataset"), items])
    name = f"{type(source).__module__}.{type(source).__qualname__}"
    if has_length(source):
        length = len(source)
        picked = sorted({k * (length - 1) // max(1, SAMPLED - 1) for k in range(SAMPLED)})
        return content_hash([name, length, _hash_twice(lambda: (source[index] for index in picked))])
    return content_hash([name, _hash_twice(lambda: itertools.islice(source, SAMPLED))])


def _hash_twice(items: Callable[[], Iterator[Any]]) -> list[str]:
    """The hash of each item. Raises ConfigError if the first items change in a second pass."""
    from flops_fit_core.training.rng import fixed_randomness

    with fixed_randomness():
        hashes = [hash_item(item) for item in items()]
    with fixed_randomness():
        second_pass = [hash_item(item) for item in itertools.islice(items(), REREAD)]
    if second_pass != hashes[:REREAD]:
        raise unidentified("dataset", "its first items change when they are read a second time")
    return hashes
