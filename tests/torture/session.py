"""Settings and helpers that the parts share."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from torture.tally import Tally
from torture.zygote import Trial

T = TypeVar("T")


@dataclass
class Session:
    """One call of the harness."""

    seed: int = 0
    stride: int = 1
    """Every n-th fault of an enumeration, and 1/n of the random faults."""
    only: str = ""
    """Only scenarios that contain this text."""
    verbose: bool = False
    """Print every fault and its time."""
    quick: bool = False
    """Leave out scenarios with worker processes, which import torch, and four or more drivers."""
    keep: bool = False
    """Keep the folders of trials with violations."""
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._violated = False

    def every(self, faults: Sequence[T], share: int = 1) -> Sequence[T]:
        """One of ``stride * share`` faults of an enumeration, drawn by the seed; at least one."""
        count = max(1, len(faults) // (self.stride * share))
        return [faults[index] for index in sorted(self.random.sample(range(len(faults)), count))] if faults else []

    def number(self, full: int) -> int:
        """How many of ``full`` random faults to inject; at least one."""
        return max(1, full // self.stride)

    def check(self, part: str, kind: str, fault: str, find_violations: Callable[[], list[str]]) -> None:
        """Count a fault. A check that raises an exception is a violation too."""
        started = time.monotonic()
        try:
            violations = find_violations()
        except Exception:
            violations = [f"the check failed: {traceback.format_exc()[-800:]}"]
        self._violated |= bool(violations)
        if self.verbose:
            print(f"{time.monotonic() - started:6.1f} s  {part}: {kind}: {fault}", flush=True)
        self.tally.add(part, kind, violations, fault)

    @contextmanager
    def trial(self, trial: Trial) -> Iterator[Trial]:
        """Remove the trial at the end, also its processes. ``keep`` keeps the folder of a violation."""
        self._violated = False
        try:
            yield trial
        finally:
            if self._violated and self.keep:
                print(f"kept {trial.folder}", flush=True)
                trial.stop()
            else:
                trial.remove()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.tally.time(part, started)
