"""Samples that training and held-out data share: windows of one text that overlap, and equal samples."""

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

PAIRS = 8
"""Pairs of neighbouring items by which windows are recognised."""
LEAST_COMMON = 4
"""Positions that two windows must have in common to be recognised."""
MOST_COMPARED, MOST_FEATURES = 4096, 16
"""Positions of an item, and numbers at each, that are compared."""
HELD_READ, TRAINING_READ, ENDS = 128, 512, 32
"""Items that are compared: so many evenly spaced ones, and so many at either end."""
MOST_SHARED = 0.5
"""Share of the held-out samples among the training samples from which they are refused."""
NOTED = 0.1
"""Share from which the plan names it."""
DUPLICATES = 0.1
"""Share of equal samples within the training data from which equal held-out samples are no mistake."""


SAME = (
    "heldout is the training data, so the loss would be measured on samples that are trained on: give other data, "
    "or leave heldout out, and heldout_share of the dataset is held out"
)


@dataclass(frozen=True)
class Windows:
    """Items each of which begins ``step`` positions after the one before, and has ``length`` of them."""

    step: int
    length: int

    @property
    def reach(self) -> int:
        """Items after one that share a position with it, or with its last target."""
        return -(-(self.length + 1) // self.step) - 1

    def positions(self, items: Sequence[int]) -> int:
        """Different positions of some of the items."""
        order = sorted(items)
        apart = ((after - before) * self.step for before, after in pairwise(order))
        return self.length + sum(min(distance, self.length) for distance in apart)


def places(source: Any) -> tuple[Any, list[int] | None]:
    """The dataset behind any Subset, and the indices of it; None for all."""
    from torch.utils.data import Subset

    indices: list[int] | None = None
    while type(source) is Subset:
        own = [int(index) for index in source.indices]
        indices = own if indices is None else [own[index] for index in indices]
        source = source.dataset
    return source, indices


def windows_of(source: Any) -> Windows | None:
    """How the items of a dataset with a length overlap, as those of a text read at every position do.

    Recognised on a few pairs of neighbours: each begins with the end of the other, by as many positions.
    A Subset has the windows of its dataset. None where no items overlap.
    """
    from flops_fit_core.training.rng import fixed_randomness

    source, inside = places(source)
    count = len(source)
    if count < 2 * PAIRS:
        return None
    steps: set[int] | None = None
    varied, length = False, 0
    for first in (number * (count - 2) // (PAIRS - 1) for number in range(PAIRS)):
        with fixed_randomness():
            before, after = _row_of(source[first]), _row_of(source[first + 1])
        if before is None or after is None or before.shape != after.shape:
            return None
        length, before, after = len(before), before[:MOST_COMPARED], after[:MOST_COMPARED]
        candidates = range(1, len(before) - LEAST_COMMON + 1) if steps is None else sorted(steps)
        steps = {step for step in candidates if bool((before[step:] == after[:-step]).all())}
        if not steps:
            return None
        varied = varied or bool((before != before[0]).any())
    if not steps or not varied:
        return None
    windows = Windows(min(steps), length)
    nearest = 1 if inside is None else min((b - a for a, b in pairwise(sorted(inside))), default=count)
    return windows if nearest <= windows.reach else None


def _row_of(item: Any) -> Tensor | None:
    """The positions of an item: its first tensor or array, or the entry ``input_ids``."""
    import numpy
    import torch

    if isinstance(item, Mapping):
        item = item.get("input_ids", next(iter(item.values()), None))
    elif isinstance(item, list | tuple) and item and not isinstance(item[0], int | float):
        item = item[0]
    if not isinstance(item, torch.Tensor | numpy.ndarray):
        return None
    row = torch.as_tensor(item)
    if not row.ndim or len(row) <= LEAST_COMMON or not row.numel():
        return None
    return row if row.ndim == 1 else row.flatten(1)[:, :MOST_FEATURES]


def split_windows(source: Any, windows: Windows, share: float) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out: the last windows of the text, and none that overlaps them."""
    _, inside = places(source)
    inside = list(range(len(source))) if inside is None else inside
    order = sorted(range(len(inside)), key=lambda index: inside[index])
    held = order[len(order) - round(len(order) * share) :]
    training = [index for index in order if held and inside[index] + windows.reach < inside[held[0]]]
    if not held or not training:
        raise DataError(
            f"the {len(order):,} samples overlap (each begins {windows.step} positions after the one before), and "
            f"no part of them can be held out: give heldout=another_dataset"
        )
    return training, held


def check_windows_apart(training: Any, heldout: Any) -> None:
    """Raises DataError for parts of one dataset whose windows overlap, such as those of a random split."""
    (data, some), (held, others) = places(training), places(heldout)
    if data is not held or some is None or others is None or not (windows := windows_of(data)):
        return
    near = set(some)
    for away in range(1, windows.reach + 1):
        near.update([index + away for index in some], [index - away for index in some])
    overlapping = sum(index in near for index in others)
    if overlapping > MOST_SHARED * len(others):
        raise DataError(
            f"{overlapping:,} of the {len(others):,} samples of heldout overlap training samples (each sample of "
            f"the dataset begins {windows.step} positions after the one before): give parts that follow one "
            f"another, or leave heldout out, and the end of the dataset is held out"
        )


def shared_samples(training: Any, heldout: Any) -> float:
    """Share of the held-out samples that are training samples too, estimated from some of both.

    0 for a small share, and where samples of the training data equal each other too. Raises DataError if
    most are.
    """
    from flops_fit_core.training.rng import fixed_randomness

    try:
        with fixed_randomness():
            trained = Counter(hash_item(training[index]) for index in _spread(len(training), TRAINING_READ))
            held = Counter(hash_item(heldout[index]) for index in _spread(len(heldout), HELD_READ))
    except ConfigError:  # items that cannot be hashed
        return 0.0
    if len(trained) < (1 - DUPLICATES) * trained.total():
        return 0.0
    # An item that occurs several times, such as an empty text, is no sign of a mistake.
    hits = sum(count == 1 and trained[item] == 1 for item, count in held.items())
    is_whole = trained.total() == len(training)
    share = min(1.0, hits / held.total() * len(training) / trained.total())
    if hits == held.total() and len(training) == len(heldout):
        raise DataError(SAME)
    if share > MOST_SHARED and (is_whole or hits > 2):
        raise DataError(
            f"{hits} of {held.total()} samples of heldout that were compared equal training samples, so the loss "
            f"would be measured on samples that are trained on: give other data, or leave heldout out"
        )
    return share if share > NOTED else 0.0


def _spread(length: int, count: int) -> list[int]:
    chosen = (
        {number * length // count for number in range(min(count, length))} if length > count else range(length)
    )
    return sorted({*chosen, *range(min(ENDS, length)), *range(max(0, length - ENDS), length)})
