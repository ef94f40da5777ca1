"""Batches that a collate function makes: their types, their targets, and errors for what cannot be one."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flops_fit_core.errors import DataError, UserError, raised_at
from flops_fit_core.plugins.protocols import Batch

if TYPE_CHECKING:
    from torch import Tensor


def plain(batch: Any) -> Batch:
    """The batch with its mappings (such as a BatchEncoding) as dicts, targets first, and its named tuples as
    lists."""
    if isinstance(batch, Mapping):
        names = sorted(batch, key=lambda name: name != "labels")
        return {name: plain(batch[name]) for name in names}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return [plain(item) for item in batch]
    return batch


def first_items(items: Iterator[Any], count: int) -> list[Any]:
    """The first items of a dataset. Raises DataError for those that cannot be read."""
    try:
        return list(itertools.islice(items, count))
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"the first items of the dataset cannot be read: {_shown(error)}") from error


def first_batch(items: list[Any], collate: Callable[[list[Any]], Any]) -> Batch:
    """A batch of the first items, for its shapes. Raises DataError for those that cannot be collated."""
    try:
        return plain(collate(items))
    except UserError:
        raise
    except Exception as error:
        raise DataError(
            f"the first items of the dataset do not make a batch: {_shown(error)}. Items of different lengths, "
            "and of other types than tensors, arrays, numbers, tuples and dicts of these, need "
            "DataLoader(dataset, batch_size=..., collate_fn=...)"
        ) from error


def _shown(error: Exception) -> str:
    place = raised_at("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error}" + (f" ({place})" if place else "")


def targets_among(batch: Batch) -> Tensor:
    """The targets of a batch. Raises DataError where there are none."""
    import torch

    found = batch
    if isinstance(batch, dict):
        if "labels" not in batch:
            raise DataError(f"a dict batch needs its targets under 'labels'; it has {', '.join(map(str, batch))}")
        found = batch["labels"]
    elif isinstance(batch, list | tuple):
        if len(batch) < 2:
            raise DataError("a batch must be (inputs, targets), a dict with 'labels', or a tensor")
        found = batch[1]
    if isinstance(found, list | tuple):
        raise DataError(
            f"the targets of a batch are a {type(found).__name__}, which torch's collate function makes of rows "
            "that are Python lists: give rows as tensors (of a Hugging Face dataset: "
            "dataset.with_format('torch')), or a DataLoader with a collate_fn that stacks them"
        )
    if not isinstance(found, torch.Tensor):
        raise DataError(f"targets must be a tensor, not {type(found).__name__}: give the DataLoader's collate_fn")
    if not found.ndim:
        raise DataError("the targets of a batch are a single number: give one for each sample, samples first")
    if not found.numel():
        raise DataError(
            f"the first samples have no targets: a batch of two has targets of shape {tuple(found.shape)}"
        )
    return found


def check_samples_first(collate: Callable[[list[Any]], Any], items: list[Any], targets: Tensor) -> None:
    """Raises DataError for targets whose second dimension is the samples'.

    Args:
        collate: Makes batches.
        items: Two items and a third.
        targets: Of the batch of the first two.
    """
    if targets.ndim < 2 or targets.shape[1] != 2 or targets.shape[0] == 2 or len(items) < 3:
        return
    try:
        three = targets_among(plain(collate(items)))
    except Exception:  # rows of three lengths, say
        return
    if three.ndim > 1 and three.shape[1] == 3 and three.shape[0] != 3:
        raise DataError(
            f"the targets of 3 samples have shape {tuple(three.shape)}: samples must come first, "
            "for example by batch_first=True in pad_sequence"
        )
