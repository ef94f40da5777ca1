"""Which sizes of a model can be built, where its family does not declare it: found by trying."""

from __future__ import annotations

import contextlib
import io
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flops_fit_core.config import PluginConfig
from flops_fit_core.errors import FlopsFitError, PlanError
from flops_fit_core.flops.model_stats import build_on_meta, push_example
from flops_fit_core.planning.own_errors import own_error
from flops_fit_core.planning.rungs import SizeGrid
from flops_fit_core.plugins.protocols import Task
from flops_fit_core.plugins.specs import ModelSpec

LARGEST_VALUE = 512
"""Values of the size option from 1 to this are tried."""
ANY_SIZE = (1, 2, 3, 5, 7, 13, 37, 97, 131, 193, 257, 389, 509)
"""A model that works at all of these works at every size. Large primes too: of a model with ``size // 64`` heads,
every small size works."""
ANCHORS = (480, 504, 384, 440, 416, 512, 448, 400, 432, 408, 456, 460, 420, 360, 320, 256, 128, 64)
"""Values with many divisors. One that works has the step that is looked for among its divisors."""
MOST_ANCHORS = 4
"""Of those that work."""
MULTIPLES = (*range(1, 18), 19, 23, 31, 43, 61, 97, 131, 193, 257, 389, 509, 769, 1009)
"""Multiples of a step that must work: those up to twice ``LARGEST_VALUE``, at least three."""
LEAST_BOUNDED = 6
"""Neighbouring multiples that must work where larger ones do not."""
LARGEST_RUN = 3_000_000
"""Parameters up to which a forward pass is tried, for real: some models cannot run on the meta device."""
LONGEST_RUN = 1e10
"""Parameters times tokens (samples) of the example up to which it is tried, about a fifth of a second. Seconds are
not measured, so that a plan is the same on every machine."""
MOST_SECONDS = 120.0
"""All attempts together, before they end in an error."""


@dataclass(frozen=True)
class Attempt:
    """What happened at one value of the size option."""

    builds: bool
    runs: bool | None
    """Whether an example also went through ``forward`` and the loss; None where that was not tried."""
    error: str = ""
    params: int = 0


class SizeProbe:
    """Builds a model at values of its size option, each once."""

    def __init__(self, model: PluginConfig[ModelSpec], task: Task) -> None:
        self.model = model
        self.task = task
        self.option = model.spec.size
        self.attempts: dict[int, Attempt] = {}
        self.seconds = 0.0

    def attempt(self, size: int) -> Attempt:
        """Build it on the meta device, then push an example through it. Raises PlanError after two minutes."""
        if size not in self.attempts:
            if self.seconds > MOST_SECONDS:
                raise PlanError(self._too_slow())
            start = time.monotonic()
            with _silence():
                self.attempts[size] = self._attempt(size)
            self.seconds += time.monotonic() - start
        return self.attempts[size]

    def _attempt(self, size: int) -> Attempt:
        try:
            options = self.model.with_options(**{self.option: size}).options
            module = build_on_meta(self.model, options, self.task)
        except (FlopsFitError, ValueError) as error:
            return Attempt(builds=False, runs=False, error=own_error(error))
        params = sum(parameter.numel() for parameter in module.parameters())
        if params < 1:
            return Attempt(builds=False, runs=False, error="the model has no parameters")
        if params > LARGEST_RUN or params * 2 * self.task.tokens_per_sample > LONGEST_RUN:
            return Attempt(builds=True, runs=None, params=params)
        try:
            push_example(self.model, options, self.task, "cpu")
        except FlopsFitError as error:
            return Attempt(builds=True, runs=False, error=own_error(error), params=params)
        return Attempt(builds=True, runs=True, params=params)

    def builds(self, size: int) -> bool:
        """Whether it can be built."""
        return self.attempt(size).builds

    def works(self, size: int) -> bool:
        """Whether it can be built, and, as far as that was tried, an example goes through it."""
        return self.attempt(size).runs is not False

    def _too_slow(self) -> str:
        errors = [attempt.error for attempt in self.attempts.values() if attempt.error]
        last = f" The last error was {errors[-1]}." if errors else ""
        return (
            f"model {self.model.name!r}: {len(self.attempts)} values of {self.option} were tried for "
            f"{self.seconds:.0f} s without finding out which can be built.{last} Write multiple_of, a number "
            f"whose multiples can be built, or a list of sizes"
        )

    def failures(self) -> list[int]:
        """Values at which it could not be built or run, in ascending order."""
        return sorted(size for size, attempt in self.attempts.items() if attempt.error)


def probe_sizes(model: PluginConfig[ModelSpec], task: Task) -> tuple[SizeGrid, list[str]]:
    """The values of a model's size option that can be built, and a note where that is not every value.

    It is the smallest step whose multiples all work, above a smallest size if there is one; otherwise powers of
    two. A size works if it can be built and an example goes through it. If no size runs, for another reason than
    its size, those that can be built are taken.

    Raises PlanError with the model's own error if no size can be built.
    """
    probe = SizeProbe(model, task)
    if all(map(probe.works, ANY_SIZE)):
        return SizeGrid(), _note_equal(probe)
    run = [probe.attempt(size).runs for size in (*ANY_SIZE, *ANCHORS) if probe.builds(size)]
    never_runs = False in run and True not in run
    works = probe.builds if never_runs else probe.works
    if all(map(works, ANY_SIZE)):
        return SizeGrid(), _note_equal(probe)
    grid = _find_grid(works)
    if grid is None:
        raise PlanError(_no_size(probe))
    return grid, [_note(probe, grid), *_note_equal(probe)]


def _find_grid(works: Callable[[int], bool]) -> SizeGrid | None:
    anchors = list(itertools.islice(filter(works, ANCHORS), MOST_ANCHORS))
    if not anchors:
        steps = [size for size in range(1, LARGEST_VALUE + 1) if works(size)]
    else:
        steps = sorted({step for anchor in anchors for step in range(1, anchor + 1) if anchor % step == 0})
    for step in steps:
        # One attempt rules out most: a multiple of the step follows each anchor.
        if all(works((anchor // step + 1) * step) for anchor in anchors):
            first = _first_multiple(step, works)
            if first is not None:
                return SizeGrid(step, first)
    return _find_doubling(works) or _find_bounded(works, steps)


def _find_bounded(works: Callable[[int], bool], steps: list[int]) -> SizeGrid | None:
    """Multiples between a smallest and a largest size; None where fewer than ``LEAST_BOUNDED`` of them work."""
    for step in steps:
        tried = [step * times for times in range(1, LARGEST_VALUE // step + 1)]
        working = [size for size in tried if works(size)]
        spans_all = bool(working) and working == list(range(working[0], working[-1] + 1, step))
        if len(working) >= LEAST_BOUNDED and spans_all and working[-1] < tried[-1]:
            return SizeGrid(step, working[0], last=working[-1])
    return None


def _first_multiple(step: int, works: Callable[[int], bool]) -> int | None:
    """The smallest multiple from which on all that are tried work; None where there are not three of them."""
    tried = [step * times for times in MULTIPLES if times <= 3 or step * times <= 2 * LARGEST_VALUE]
    working: list[int] = []
    for size in tried:
        if works(size):
            working.append(size)
        elif working:
            return None
    if len(working) < 3:
        return None
    first = working[0]
    while first > step and first - step not in tried and works(first - step):
        first -= step
    return first


def _find_doubling(works: Callable[[int], bool]) -> SizeGrid | None:
    first = next((size for size in range(1, LARGEST_VALUE // 8 + 1) if works(size)), None)
    if first is None:
        return None
    doubled = itertools.takewhile(
        lambda size: size <= 2 * LARGEST_VALUE, (first * 2**times for times in range(11))
    )
    if not all(map(works, doubled)):
        return None
    return SizeGrid(first, first, doubling=True)


def _note(probe: SizeProbe, grid: SizeGrid) -> str:
    sizes = f"multiples of {grid.step}" + (f" from {grid.first} on" if grid.first > grid.step else "")
    if grid.step == 1:
        sizes = f"whole numbers from {grid.first} on"
    if grid.last is not None:
        numbers = f"multiples of {grid.step}" if grid.step > 1 else "whole numbers"
        sizes = f"{numbers} from {grid.first} to {grid.last}"
    if grid.doubling:
        sizes = f"{grid.first} times a power of two" if grid.first > 1 else "powers of two"
    failures = probe.failures()
    last = failures[-1]
    return (
        f"values of {probe.option} are {sizes}: these can be built. At {probe.option} = {last}: "
        f"{probe.attempts[last].error}. Write multiple_of, or a list of sizes, to decide it yourself"
    )


def _note_equal(probe: SizeProbe) -> list[str]:
    """A note where neighbouring values that were tried give models with equally many parameters."""
    attempts = [(size, probe.attempts[size].params) for size in sorted(probe.attempts)]
    pairs = itertools.pairwise((size, params) for size, params in attempts if params)
    equal = [(low, high, params) for (low, params), (high, more) in pairs if params == more]
    if not equal:
        return []
    low, high, params = equal[-1]
    note = (
        f"{probe.option} = {low} and {probe.option} = {high} both give a model of {params:,} parameters, so the "
        f"model rounds or limits {probe.option}. N and C are of the model that is built, and a plan names the "
        f"value that is passed. Write multiple_of, the number that it is rounded to, for sizes as they are built"
    )
    return [note]


def _no_size(probe: SizeProbe) -> str:
    failures = [size for size in probe.failures() if size <= LARGEST_VALUE]
    errors: dict[str, int] = {}
    for size in (*failures[::-1], *failures):  # a large size is the least likely to be too small
        errors.setdefault(probe.attempts[size].error, size)
    shown = [f"  {probe.option} = {size}: {error}" for error, size in list(errors.items())[:2]]
    worked = [size for size, attempt in probe.attempts.items() if attempt.builds]
    found = f"it can be built at {_listed(sorted(worked))} only" if worked else "it cannot be built at any"
    tried = _listed(failures or sorted(worked))
    name = probe.model.name
    first = f"model {name!r}: tried {probe.option} = {tried}, and {found}, so no sizes can be chosen:"
    last = "Change the model or its arguments, or write a list of sizes that can be built"
    return "\n".join([first, *shown, last])


def _listed(sizes: list[int]) -> str:
    """``1 to 4, 8, 12``"""
    spans: list[list[int]] = []
    for size in sizes:
        if spans and size == spans[-1][1] + 1:
            spans[-1][1] = size
        else:
            spans.append([size, size])
    texts = [
        f"{low} to {high}" if high > low + 1 else ", ".join(map(str, sorted({low, high}))) for low, high in spans
    ]
    return ", ".join(texts if len(texts) <= 24 else [*texts[:20], "...", texts[-1]])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what a model prints and warns of while it is tried."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
