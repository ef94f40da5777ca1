"""Reproducible passes over a torch ``IterableDataset``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from flops_fit_core.api.fingerprint.objects import hash_item
from flops_fit_core.errors import DataError

CHUNK = 64
"""Samples read together. The states of the generators are swapped once per chunk."""
COMPARED = 16
"""First samples that are compared between two passes."""
SEED_STEP = 1_000_003
"""Distance between two runs' seeds in the seeds of their passes."""
ADVICE = (
    "give eval_dataset=another_dataset, and as dataset a function make(seed) that returns the stream in the order of "
    "that seed and depends on nothing else"
)


class SeededStream:
    """A stream that takes a seed: ``make(seed)`` returns a torch ``IterableDataset``."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __call__(self, seed: int) -> Any:
        return self.make(seed)


class StreamPasses:
    """Reads a stream repeatedly.

    While a sample is read, the global generators of torch, random and numpy have states that belong to the pass.
    They are seeded by the number of the pass, and for a :class:`SeededStream` also by the run's seed. Random
    numbers drawn by the model therefore do not change the data, and a resumed run reads the same samples as an
    uninterrupted run.

    Args:
        source: A torch ``IterableDataset``, or a :class:`SeededStream`.
        seed: Seed of the run.
    """

    def __init__(self, source: Any, seed: int) -> None:
        self._source = source
        self._seed = seed
        self.length: int | None = None
        """Samples per pass; None until the first pass has been read to its end."""

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
        """Samples of successive passes, without the first ``behind`` samples of each pass.

        Ends after the first pass if ``repeat`` is False, and after a pass with no samples left.
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
    """Raises DataError for a stream that cannot be resumed, shuffles itself, or needs held-out data."""
    passes = StreamPasses(source, 0)
    first, repeated, second = (
        [hash_item(item) for item in itertools.islice(passes.read(number), COMPARED)] for number in (0, 0, 1)
    )
    if first != repeated:
        raise DataError(
            "the stream gives different samples each time it is read, even with equal seeds of torch, random and "
            f"numpy, so no run could be resumed: {ADVICE}"
        )
    if isinstance(source, SeededStream):
        if not has_eval_data:
            raise DataError(
                "dataset=make(seed) gives a different order for each seed, so none of its samples can be held "
                "out: give eval_dataset=another_dataset"
            )
    elif first != second:
        raise DataError(
            "the stream shuffles itself (its samples depend on the global seed of torch, random or numpy), so "
            "samples held out in one pass would be trained on in the next, and the run's seed would change "
            f"nothing: {ADVICE}"
        )
