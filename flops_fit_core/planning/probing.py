"""The sizes of a model that can be built, determined by trials, for a family that does not declare them."""

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
from flops_fit_core.planning.ladder_sizes import SizeGrid
from flops_fit_core.planning.model_errors import describe_model_error
from flops_fit_core.plugins.protocols import Task
from flops_fit_core.plugins.specs import ModelSpec

LARGEST_VALUE = 512
"""Largest value of the size option that is tried, except for multiples of a step."""
ANY_SIZE = (1, 2, 3, 5, 7, 13, 37, 97, 131, 193, 257, 389, 509)
"""A model that works at all these sizes is taken to work at every size. The list contains large primes, because a
model with ``size // 64`` heads works at every small size."""
ANCHORS = (480, 504, 384, 440, 416, 512, 448, 400, 432, 408, 456, 460, 420, 360, 320, 256, 128, 64)
"""Values with many divisors. If a value works, the step is one of its divisors."""
MAX_ANCHORS = 4
"""Number of working anchors that are used."""
MULTIPLES = (*range(1, 18), 19, 23, 31, 43, 61, 97, 131, 193, 257, 389, 509, 769, 1009)
"""Multiples of a step that must work, up to twice ``LARGEST_VALUE`` and at least three."""
MIN_BOUNDED = 6
"""Neighbouring multiples that must work if larger multiples do not."""
MAX_FORWARD_PARAMS = 3_000_000
"""Parameters of the largest model that is tried with a forward pass on the CPU. Some models cannot run on the meta
device."""
MAX_FORWARD_WORK = 1e10
"""Largest product of parameters and tokens (samples) of a forward pass, about 0.2 s. The limit is not in seconds,
so that a plan is the same on every machine."""
MAX_SECONDS = 120.0
"""Total seconds of all attempts; then they end with an error."""


@dataclass(frozen=True)
class Attempt:
    """The result of a trial of one value of the size option."""

    builds: bool
    runs: bool | None
    """Whether ``forward`` and the loss accept an example; None if this was not tried."""
    error: str = ""
    params: int = 0


class SizeProbe:
    """Builds a model at values of its size option, once per value."""

    def __init__(self, model: PluginConfig[ModelSpec], task: Task) -> None:
        self.model = model
        self.task = task
        self.option = model.spec.size
        self.attempts: dict[int, Attempt] = {}
        self.seconds = 0.0

    def attempt(self, size: int) -> Attempt:
        """Build the model on the meta device, then run an example. Raises PlanError after two minutes."""
        if size not in self.attempts:
            if self.seconds > MAX_SECONDS:
                raise PlanError(self._too_slow())
            start = time.monotonic()
            with _suppress_output():
                self.attempts[size] = self._attempt(size)
            self.seconds += time.monotonic() - start
        return self.attempts[size]

    def _attempt(self, size: int) -> Attempt:
        try:
            options = self.model.with_options(**{self.option: size}).options
            module = build_on_meta(self.model, options, self.task)
        except (FlopsFitError, ValueError) as error:
            return Attempt(builds=False, runs=False, error=describe_model_error(error))
        params = sum(parameter.numel() for parameter in module.parameters())
        if params < 1:
            return Attempt(builds=False, runs=False, error="the model has no parameters")
        if params > MAX_FORWARD_PARAMS or params * 2 * self.task.tokens_per_sample > MAX_FORWARD_WORK:
            return Attempt(builds=True, runs=None, params=params)
        try:
            push_example(self.model, options, self.task, "cpu")
        except FlopsFitError as error:
            return Attempt(builds=True, runs=False, error=describe_model_error(error), params=params)
        return Attempt(builds=True, runs=True, params=params)

    def builds(self, size: int) -> bool:
        """Whether the model can be built."""
        return self.attempt(size).builds

    def works(self, size: int) -> bool:
        """Whether the model can be built and, if this was tried, accepts an example."""
        return self.attempt(size).runs is not False

    def _too_slow(self) -> str:
        errors = [attempt.error for attempt in self.attempts.values() if attempt.error]
        last = f" The last error was {errors[-1]}." if errors else ""
        return (
            f"model {self.model.name!r}: {len(self.attempts)} values of {self.option} were tried for "
            f"{self.seconds:.0f} s, but the sizes that can be built are still unknown.{last} Write multiple_of, a "
            f"number with multiples that can be built, or a list of sizes"
        )

    def failures(self) -> list[int]:
        """Values at which the model cannot be built or run, in ascending order."""
        return sorted(size for size, attempt in self.attempts.items() if attempt.error)


def probe_sizes(model: PluginConfig[ModelSpec], task: Task) -> tuple[SizeGrid, list[str]]:
    """The values of a model's size option that can be built, and notes if these are not all values.

    The result is the smallest step with multiples that all work, possibly from a smallest size on; otherwise
    powers of two. A size works if the model can be built and accepts an example. If the model cannot run at any
    size, sizes that can be built count as working.

    Raises PlanError with the model's own error if no size can be built.
    """
    probe = SizeProbe(model, task)
    if all(map(probe.works, ANY_SIZE)):
        return SizeGrid(), _equal_size_notes(probe)
    outcomes = [probe.attempt(size).runs for size in (*ANY_SIZE, *ANCHORS) if probe.builds(size)]
    never_runs = False in outcomes and True not in outcomes
    works = probe.builds if never_runs else probe.works
    if all(map(works, ANY_SIZE)):
        return SizeGrid(), _equal_size_notes(probe)
    grid = _find_grid(works)
    if grid is None:
        raise PlanError(_explain_no_size(probe))
    return grid, [_grid_note(probe, grid), *_equal_size_notes(probe)]


def _find_grid(works: Callable[[int], bool]) -> SizeGrid | None:
    anchors = list(itertools.islice(filter(works, ANCHORS), MAX_ANCHORS))
    if not anchors:
        steps = [size for size in range(1, LARGEST_VALUE + 1) if works(size)]
    else:
        steps = sorted({step for anchor in anchors for step in range(1, anchor + 1) if anchor % step == 0})
    for step in steps:
        # A single attempt rules out most steps: the multiple of the step after each anchor.
        if all(works((anchor // step + 1) * step) for anchor in anchors):
            first = _first_multiple(step, works)
            if first is not None:
                return SizeGrid(step, first)
    return _find_doubling(works) or _find_bounded(works, steps)


def _find_bounded(works: Callable[[int], bool], steps: list[int]) -> SizeGrid | None:
    """Multiples between a smallest and a largest size; None if fewer than ``MIN_BOUNDED`` multiples work."""
    for step in steps:
        tried = [step * multiple for multiple in range(1, LARGEST_VALUE // step + 1)]
        working = [size for size in tried if works(size)]
        spans_all = bool(working) and working == list(range(working[0], working[-1] + 1, step))
        if len(working) >= MIN_BOUNDED and spans_all and working[-1] < tried[-1]:
            return SizeGrid(step, working[0], last=working[-1])
    return None


def _first_multiple(step: int, works: Callable[[int], bool]) -> int | None:
    """The smallest multiple from which all tried multiples work; None if fewer than three work."""
    tried = [step * multiple for multiple in MULTIPLES if multiple <= 3 or step * multiple <= 2 * LARGEST_VALUE]
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
    """A smallest size times powers of two; None if some of these do not work."""
    first = next((size for size in range(1, LARGEST_VALUE // 8 + 1) if works(size)), None)
    if first is None:
        return None
    doubled = itertools.takewhile(
        lambda size: size <= 2 * LARGEST_VALUE, (first * 2**power for power in range(11))
    )
    if not all(map(works, doubled)):
        return None
    return SizeGrid(first, first, doubling=True)


def _grid_note(probe: SizeProbe, grid: SizeGrid) -> str:
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
        f"values of {probe.option} that can be built are {sizes}. At {probe.option} = {last}: "
        f"{probe.attempts[last].error}. To choose other sizes, write multiple_of or a list of sizes"
    )


def _equal_size_notes(probe: SizeProbe) -> list[str]:
    """A note if two neighbouring tried values give models with the same number of parameters."""
    attempts = [(size, probe.attempts[size].params) for size in sorted(probe.attempts)]
    pairs = itertools.pairwise((size, params) for size, params in attempts if params)
    equal = [(low, high, params) for (low, params), (high, more) in pairs if params == more]
    if not equal:
        return []
    low, high, params = equal[-1]
    note = (
        f"{probe.option} = {low} and {probe.option} = {high} both give a model of {params:,} parameters, so the "
        f"model rounds or limits {probe.option}. A plan shows the value that is passed, and N and C of the model "
        f"that is built. To make both agree, set multiple_of to the number that the model rounds to"
    )
    return [note]


def _explain_no_size(probe: SizeProbe) -> str:
    failures = [size for size in probe.failures() if size <= LARGEST_VALUE]
    errors: dict[str, int] = {}
    for size in (*failures[::-1], *failures):  # a large size is least likely to fail by being too small
        errors.setdefault(probe.attempts[size].error, size)
    shown = [f"  {probe.option} = {size}: {error}" for error, size in list(errors.items())[:2]]
    built = [size for size, attempt in probe.attempts.items() if attempt.builds]
    result = (
        f"it can be built only at {_format_sizes(sorted(built))}" if built else "it cannot be built at any size"
    )
    tried = _format_sizes(failures or sorted(built))
    name = probe.model.name
    first = f"model {name!r}: tried {probe.option} = {tried}; {result}, so no sizes can be chosen:"
    last = "Change the model or its arguments, or write a list of sizes that can be built"
    return "\n".join([first, *shown, last])


def _format_sizes(sizes: list[int]) -> str:
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
def _suppress_output() -> Iterator[None]:
    """Discard the output and warnings of a model during a trial."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
