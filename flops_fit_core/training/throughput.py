"""Where a stretch of training spends its time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flops_fit_core.training.run_state import Pass

PROGRESS_SECONDS = 0.5


class Stopwatch:
    """Times the steps of passes that are trained side by side; each is charged its share."""

    def __init__(self, group: Sequence[Pass]) -> None:
        self._group = group
        self._steps = 0
        self._waited = 0.0
        self._started = self._spoken = self._saved = self._now = time.perf_counter()

    def step(self, waited: float) -> None:
        """A step has been submitted, whose batch was waited for so long."""
        for one in self._group:
            if not one.position.diverged:
                one.position.step += 1
        self._steps += 1
        self._waited += waited
        self._now = time.perf_counter()

    def speaks(self) -> bool:
        """Whether it is time to say where the runs are."""
        return self._now - self._spoken > PROGRESS_SECONDS

    def speak(self) -> float:
        """Steps a second; the next time to speak is counted from now."""
        self._spoken = self._now
        return self._steps / max(self._now - self._started, 1e-9)

    def since_saved(self) -> float:
        return self._now - self._saved

    def saved(self) -> None:
        self._saved = self._started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done here is no training."""
        before = time.perf_counter()
        yield
        self._started += time.perf_counter() - before

    def settle(self) -> None:
        """Charge the passes with what they have spent, and begin anew."""
        now = time.perf_counter()
        for one in self._group:
            one.position.train_seconds += (now - self._started) / len(self._group)
            one.position.wait_seconds += self._waited / len(self._group)
        self._started, self._steps, self._waited = now, 0, 0.0


def timed(batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Each batch, and for how long it was waited for."""
    clock = time.perf_counter
    while True:
        before = clock()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, clock() - before
