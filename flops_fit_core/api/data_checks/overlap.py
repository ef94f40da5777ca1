"""Samples shared by training and held-out data: overlapping windows of one text, and equal samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from flops_fit_core.api.fingerprint.objects import hash_item
from flops_fit_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

COMPARED_PAIRS = 8
"""Pairs of neighbouring items that are compared to recognise windows."""
MIN_COMMON = 4
"""Positions that two windows must have in common."""
MAX_POSITIONS, MAX_FEATURES = 4096, 16
"""Compared positions of an item, and compared numbers at each position."""
EVAL_READ, TRAINING_READ, READ_AT_ENDS = 128, 512, 32
"""Compared items: evenly spaced held-out items, evenly spaced training items, and items at each end of both."""
REFUSED_SHARE = 0.5
"""Above this share of held-out samples that are training samples, the data are refused."""
NOTED_SHARE = 0.1
"""Above this share, the plan has a note."""
DUPLICATE_SHARE = 0.1
"""With more equal samples than this within the training data, equal held-out samples are not a mistake."""


SAME_DATA = (
    "eval_dataset is the training data, so the loss would be measured on training samples: pass other data, or "
    "leave eval_dataset out to hold out eval_share of the dataset"
)


@dataclass(frozen=True)
class Windows:
    """Overlapping items of ``length`` positions. Each begins ``step`` positions after the previous item."""

    step: int
    length: int

    @property
    def reach(self) -> int:
        """Number of following items that overlap an item or its last target."""
        return -(-(self.length + 1) // self.step) - 1

    def positions(self, items: Sequence[int]) -> int:
        """Number of distinct positions in some of the items."""
        order = sorted(items)
        distances = ((after - before) * self.step for before, after in pairwise(order))
        return self.length + sum(min(distance, self.length) for distance in distances)


def unwrap_subset(source: Any) -> tuple[Any, list[int] | None]:
    """The dataset inside nested Subsets, and the selected indices (None: all)."""
    from torch.utils.data import Subset

    indices: list[int] | None = None
    while type(source) is Subset:
        inner = [int(index) for index in source.indices]
        indices = inner if indices is None else [inner[index] for index in indices]
        source = source.dataset
    return source, indices


def find_windows(source: Any) -> Windows | None:
    """The overlap of a dataset's items, for example of windows at every position of a text. None without overlap.

    Windows are recognised by a few pairs of neighbours: the second begins with the end of the first, shifted by
    the same number of positions in every pair. A Subset has the windows of its dataset.
    """
    from flops_fit_core.training.rng import fixed_randomness

    source, indices = unwrap_subset(source)
    count = len(source)
    if count < 2 * COMPARED_PAIRS:
        return None
    steps: set[int] | None = None
    varied, length = False, 0
    for first in (number * (count - 2) // (COMPARED_PAIRS - 1) for number in range(COMPARED_PAIRS)):
        with fixed_randomness():
            before, after = _positions_of(source[first]), _positions_of(source[first + 1])
        if before is None or after is None or before.shape != after.shape:
            return None
        length, before, after = len(before), before[:MAX_POSITIONS], after[:MAX_POSITIONS]
        candidates = range(1, len(before) - MIN_COMMON + 1) if steps is None else sorted(steps)
        steps = {step for step in candidates if bool((before[step:] == after[:-step]).all())}
        if not steps:
            return None
        varied = varied or bool((before != before[0]).any())
    if not steps or not varied:
        return None
    windows = Windows(min(steps), length)
    nearest = 1 if indices is None else min((b - a for a, b in pairwise(sorted(indices))), default=count)
    return windows if nearest <= windows.reach else None


def _positions_of(item: Any) -> Tensor | None:
    """The positions of an item, from ``input_ids`` or its first tensor: (positions) or (positions, features)."""
    import numpy
    import torch

    if isinstance(item, Mapping):
        item = item.get("input_ids", next(iter(item.values()), None))
    elif isinstance(item, list | tuple) and item and not isinstance(item[0], int | float):
        item = item[0]
    if not isinstance(item, torch.Tensor | numpy.ndarray):
        return None
    row = torch.as_tensor(item)
    if not row.ndim or len(row) <= MIN_COMMON or not row.numel():
        return None
    return row if row.ndim == 1 else row.flatten(1)[:, :MAX_FEATURES]


def split_windows(source: Any, windows: Windows, share: float) -> tuple[list[int], list[int]]:
    """Indices of the training and the held-out part: the end of the text, which no training window overlaps.

    Raises DataError if the text is too short.
    """
    _, indices = unwrap_subset(source)
    starts = list(range(len(source))) if indices is None else indices
    order = sorted(range(len(starts)), key=lambda index: starts[index])
    held_out = order[len(order) - round(len(order) * share) :]
    training = [index for index in order if held_out and starts[index] + windows.reach < starts[held_out[0]]]
    if not held_out or not training:
        raise DataError(
            f"the {len(order):,} samples overlap (each begins {windows.step} positions after the previous one), "
            f"so no separate part can be held out: pass eval_dataset=another_dataset"
        )
    return training, held_out


def check_windows_disjoint(training: Any, eval_dataset: Any) -> None:
    """Raises DataError for parts of one dataset with overlapping windows, for example from a random split."""
    (base, training_indices), (eval_base, eval_indices) = unwrap_subset(training), unwrap_subset(eval_dataset)
    if base is not eval_base or training_indices is None or eval_indices is None:
        return
    windows = find_windows(base)
    if windows is None:
        return
    near = set(training_indices)
    for distance in range(1, windows.reach + 1):
        near.update([index + distance for index in training_indices])
        near.update([index - distance for index in training_indices])
    overlapping = sum(index in near for index in eval_indices)
    if overlapping > REFUSED_SHARE * len(eval_indices):
        raise DataError(
            f"{overlapping:,} of the {len(eval_indices):,} samples of eval_dataset overlap training samples (each "
            f"sample of the dataset begins {windows.step} positions after the previous one): pass consecutive "
            f"parts, or leave eval_dataset out to hold out the end of the dataset"
        )


def shared_samples(training: Any, eval_dataset: Any) -> float:
    """Share of the held-out samples that are also training samples, estimated from some of both.

    Returns 0 for a small share, for items that cannot be hashed, and if samples within the training data equal
    each other. Raises DataError if most held-out samples are training samples.
    """
    from flops_fit_core.training.rng import fixed_randomness

    try:
        with fixed_randomness():
            training_hashes = Counter(
                hash_item(training[index]) for index in _spread_indices(len(training), TRAINING_READ)
            )
            eval_hashes = Counter(
                hash_item(eval_dataset[index]) for index in _spread_indices(len(eval_dataset), EVAL_READ)
            )
    except ConfigError:  # items that cannot be hashed
        return 0.0
    if len(training_hashes) < (1 - DUPLICATE_SHARE) * training_hashes.total():
        return 0.0
    # Repeated items, such as empty texts, do not indicate a mistake.
    hits = sum(count == 1 and training_hashes[item] == 1 for item, count in eval_hashes.items())
    is_complete = training_hashes.total() == len(training)
    share = min(1.0, hits / eval_hashes.total() * len(training) / training_hashes.total())
    if hits == eval_hashes.total() and len(training) == len(eval_dataset):
        raise DataError(SAME_DATA)
    if share > REFUSED_SHARE and (is_complete or hits > 2):
        raise DataError(
            f"{hits} of {eval_hashes.total()} compared samples of eval_dataset equal training samples, so the "
            f"loss would be measured on training samples: pass other data, or leave eval_dataset out"
        )
    return share if share > NOTED_SHARE else 0.0


def _spread_indices(length: int, count: int) -> list[int]:
    """Indices of ``count`` evenly spaced items, and of the items at both ends."""
    spaced = (
        {number * length // count for number in range(min(count, length))} if length > count else range(length)
    )
    return sorted({*spaced, *range(min(READ_AT_ENDS, length)), *range(max(0, length - READ_AT_ENDS), length)})
