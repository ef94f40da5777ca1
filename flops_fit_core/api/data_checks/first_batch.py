"""The first batch of a dataset: its types, its targets, and errors for items that cannot be collated."""

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
    """The batch with mappings (such as a BatchEncoding) as dicts, ``labels`` first, and named tuples as lists."""
    if isinstance(batch, Mapping):
        names = sorted(batch, key=lambda name: name != "labels")
        return {name: plain(batch[name]) for name in names}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return [plain(item) for item in batch]
    return batch


def first_items(items: Iterator[Any], count: int) -> list[Any]:
    """The first items of a dataset. Raises DataError if they cannot be read."""
    try:
        return list(itertools.islice(items, count))
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"the first items of the dataset cannot be read: {_describe_error(error)}") from error


def first_batch(items: list[Any], collate: Callable[[list[Any]], Any]) -> Batch:
    """A batch of the first items, for its shapes. Raises DataError if they cannot be collated."""
    try:
        return plain(collate(items))
    except UserError:
        raise
    except Exception as error:
        raise DataError(
            f"the first items of the dataset cannot be collated into a batch: {_describe_error(error)}. Pass "
            "DataLoader(dataset, batch_size=..., collate_fn=...) if items differ in length or contain other types "
            "than tensors, arrays, numbers, and tuples and dicts of these"
        ) from error


def _describe_error(error: Exception) -> str:
    place = raised_at("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error}" + (f" ({place})" if place else "")


def batch_targets(batch: Batch) -> Tensor:
    """The targets of a batch. Raises DataError if the batch has none or if they are not a tensor."""
    import torch

    targets: Any = batch
    if isinstance(batch, dict):
        if "labels" not in batch:
            raise DataError(
                f"a dict batch must contain its targets as 'labels'; it contains {', '.join(map(str, batch))}"
            )
        targets = batch["labels"]
    elif isinstance(batch, list | tuple):
        if len(batch) < 2:
            raise DataError("a batch must be (inputs, targets), a dict with 'labels', or a tensor")
        targets = batch[1]
    if isinstance(targets, list | tuple):
        raise DataError(
            f"the targets of a batch are a {type(targets).__name__}, because torch's collate function does not "
            "stack Python lists: return rows as tensors (for Hugging Face datasets: "
            "dataset.with_format('torch')), or pass a DataLoader with a collate_fn that stacks them"
        )
    if not isinstance(targets, torch.Tensor):
        raise DataError(
            f"targets must be a tensor, not {type(targets).__name__}: pass a DataLoader with a collate_fn"
        )
    if not targets.ndim:
        raise DataError("the targets of a batch are a single number: return one target per sample, samples first")
    if not targets.numel():
        raise DataError(
            f"the first samples have no targets: a batch of two has targets of shape {tuple(targets.shape)}"
        )
    return targets


def check_samples_first(collate: Callable[[list[Any]], Any], items: list[Any], targets: Tensor) -> None:
    """Raises DataError if samples are the second dimension of the targets.

    Args:
        collate: Collates items into a batch.
        items: At least two items; three are needed for the check.
        targets: Targets of the batch of the first two items.
    """
    if targets.ndim < 2 or targets.shape[1] != 2 or targets.shape[0] == 2 or len(items) < 3:
        return
    try:
        targets_of_three = batch_targets(plain(collate(items)))
    except Exception:  # for example rows of three lengths
        return
    if targets_of_three.ndim > 1 and targets_of_three.shape[1] == 3 and targets_of_three.shape[0] != 3:
        raise DataError(
            f"the targets of 3 samples have shape {tuple(targets_of_three.shape)}: samples must be the first "
            "dimension, for example with batch_first=True in pad_sequence"
        )
