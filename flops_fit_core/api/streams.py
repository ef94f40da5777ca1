"""Passes over a torch ``IterableDataset``, each the same whenever it is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from flops_fit_core.api.fingerprint.objects import hash_item
from flops_fit_core.errors import DataError

CHUNK = 64
"""Samples read at a time: the generators' states are exchanged once for all of them."""
COMPARED = 16
"""First samples by which two passes are compared."""
SEED_STEP = 1_000_003
"""Distance between the seeds of two runs in the seeds of passes."""
ADVICE = (
    "give eval_dataset=another_dataset, and as dataset a function make(seed) that returns the stream in the order of "
    "that seed, made of nothing but the seed"
)


class SeededStream:
    """A stream that takes a seed: ``make(seed)`` returns a torch ``IterableDataset``."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __call__(self, seed: int) -> Any:
        return self.make(seed)


class StreamPasses:
    """Reads a stream again and again.

    While a sample is made, the global generators of torch, random and numpy are the pass's own, seeded from its
    number (and the run's seed, for a stream that takes one). So what the model draws does not change the data, and
    a run that is resumed reads what it would have read.

    Args:
        source: A torch ``IterableDataset``, or a :class:`SeededStream`.
        seed: Of the run.
    """

    def __init__(self, source: Any, seed: int) -> None:
        self._source = source
        self._seed = seed
        self.length: int | None = None
        """Samples of one pass, once one has been read to its end."""

    def read(self, number: int) -> Iterator[Any]:
        """The samples of one pass, counted from 0."""
        from flops_fit_core.training.rng import SeparateGenerators

        takes_seed = isinstance(self._source, SeededStream)
        seed = number + self._seed * SEED_STEP if takes_seed else number
        randomness = SeparateGenerators(seed)
        with randomness:
            iterator = iter(self._source(seed) if takes_seed else self._source)
        while True:
            with randomness:
                items = list(itertools.islice(iterator, CHUNK))
            yield from items
            if len(items) < CHUNK:
                return

    def samples(self, *, behind: int, repeat: bool) -> Iterator[Any]:
        """Samples of one pass after another, each without its first ``behind``.

        Ends after the first pass unless they are to be repeated, and where a pass has no more samples than those.
        """
        for number in itertools.count():
            count = 0
            for item in itertools.islice(self.read(number), behind, None):
                count += 1
                yield item
            if number == 0:
                self.length = count
            if not repeat or not count:
                return


def check_stream(source: Any, *, has_eval_data: bool) -> None:
    """Raises DataError for a stream whose passes differ and that takes no seed, or has no held-out data."""
    passes = StreamPasses(source, 0)
    first, again, second = (
        [hash_item(item) for item in itertools.islice(passes.read(number), COMPARED)] for number in (0, 0, 1)
    )
    if first != again:
        raise DataError(
            "the stream gives other samples each time it is read, whatever torch, random and numpy are seeded "
            f"with, so no run could be resumed: {ADVICE}"
        )
    if isinstance(source, SeededStream):
        if not has_eval_data:
            raise DataError(
                "dataset=make(seed) gives another order for each seed, so no samples of it are held out: give "
                "eval_dataset=another_dataset"
            )
    elif first != second:
        raise DataError(
            "the stream shuffles itself (its samples depend on torch's, random's or numpy's global seed), so "
            "samples held out in one pass would be trained on in the next, and seeds would change nothing: "
            f"{ADVICE}"
        )
