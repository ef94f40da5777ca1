"""Torch's own dataset types: what they hold, how they are divided, what identifies them."""

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
"""Items whose content identifies a dataset."""
REREAD = 4
"""Items that are read twice, to see that they are the same."""


def has_length(source: Any) -> bool:
    from torch.utils.data import IterableDataset

    # Of torch's iterable datasets, each has a __getitem__, which raises, and some have a length.
    is_iterable = isinstance(source, IterableDataset)
    return not is_iterable and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def unwrap(data: Any, least: int = 2) -> tuple[Any, Callable[[list[Any]], Batch]]:
    """The dataset, of at least so many items, and the collate function of whatever was given.

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

    if isinstance(data, SeededStream):
        return data, default_collate
    if not isinstance(data, DataLoader):
        if isinstance(data, Iterator) and not isinstance(data, Dataset):
            raise DataError(
                f"dataset is an iterator ({type(data).__name__}), which can be gone through once, and every run "
                f"begins anew: give an IterableDataset whose __iter__ makes the iterator"
            )
        if not hasattr(data, "__getitem__") and not hasattr(data, "__iter__"):
            raise DataError(f"dataset must be a torch Dataset, IterableDataset or DataLoader, not {type(data)}")
        if hasattr(data, "__len__") and len(data) < least:
            name, purpose = (
                ("dataset", "train on") if least > 1 else ("eval_dataset dataset", "measure the loss on")
            )
            raise DataError(f"the {name} has {len(data)} items: there is nothing to {purpose}")
        return data, default_collate
    is_stream = isinstance(data.dataset, IterableDataset)
    plain = is_stream or isinstance(data.sampler, RandomSampler | SequentialSampler)
    if data.batch_size is None or not plain:
        raise DataError(
            "a DataLoader with its own sampler or batches decides which samples a run sees, and so does a "
            "sweep: pass its dataset instead"
        )
    return data.dataset, data.collate_fn


def eval_collate(eval_dataset: Any) -> Callable[[list[Any]], Batch] | None:
    """The collate function of a held-out DataLoader that was given one. None: that of the training data."""
    from torch.utils.data import DataLoader, default_collate

    given = eval_dataset.collate_fn if isinstance(eval_dataset, DataLoader) else default_collate
    return None if given is default_collate else given


def split_indices(length: int, share: float) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out, the latter evenly spaced."""
    held = round(length * share)
    if share > 0 and not 0 < held < length:
        raise DataError(
            f"{length} items cannot give a held-out share of {share:.0%}: give eval_dataset=another_dataset"
        )
    out = {(2 * k + 1) * length // (2 * held) for k in range(held)} if held else set()
    return [index for index in range(length) if index not in out], sorted(out)


def identify_functions(
    data: Any, loss_fn: Callable[[Any, Any], Any] | None, eval_dataset: Any = None
) -> tuple[str | None, ...]:
    """Of the loss function, and of collate functions other than torch's, what identifies it.

    Raises ConfigError, asking for ``fingerprint=``, where one cannot be identified.
    """
    from torch.utils.data import default_collate

    loss = identify_value(loss_fn, "loss_fn") if loss_fn is not None else None
    source, collate = unwrap(data)
    functions = [loss]
    if collate is not default_collate:
        functions.append(identify_value(_function_of(collate, source), "collate_fn"))
    own = eval_collate(eval_dataset)
    if own is not None:
        own_function, other = _function_of(own, unwrap(eval_dataset, 1)[0]), _function_of(collate, source)
        if own_function is not other:
            functions.append(f"eval_dataset: {identify_value(own_function, 'the collate_fn of eval_dataset')}")
    return tuple(functions)


def _function_of(collate: Any, source: Any) -> Any:
    """The function of a method of the dataset, whose content is identified already."""
    return collate.__func__ if getattr(collate, "__self__", None) is source else collate


def identify_source(source: Any) -> str:
    """Type, length and a hash of 64 evenly spaced items; of a stream, its first 64.

    Raises ConfigError where the first items are others when they are read again.
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
    """The hash of every item, of which the first few are read again."""
    from flops_fit_core.training.rng import fixed_randomness

    with fixed_randomness():
        hashes = [hash_item(item) for item in items()]
    with fixed_randomness():
        again = [hash_item(item) for item in itertools.islice(items(), REREAD)]
    if again != hashes[:REREAD]:
        raise unidentified("dataset", "its first items are others when they are read again")
    return hashes
