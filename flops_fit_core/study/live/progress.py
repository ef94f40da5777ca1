"""The logger that shows the progress of a sweep to the person who started it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence

from flops_fit_core.plugins.protocols import Logger
from flops_fit_core.records import Progress, RunResult, SweepPlan
from flops_fit_core.study.live.displays import Display, choose_display
from flops_fit_core.study.live.state import SweepState

SWITCH = "FLOPS_FIT_PROGRESS"
"""Environment variable: 0 shows no progress."""


class SweepProgress(Logger):
    """Shows a sweep while it trains: in a terminal, in a notebook, or as a line per finished run.

    Args:
        folder: The study's folder as it is typed in commands.
        results: Results from before the sweep that count as done.
        workers: Jobs that are trained at the same time; None if unknown.
        timings: Run id -> tokens per second, measured before the sweep.
        display: By default the one for standard error of this process.
    """

    def __init__(
        self,
        folder: str,
        results: Sequence[RunResult] = (),
        *,
        workers: int | None = None,
        timings: Mapping[str, float] | None = None,
        display: Display | None = None,
    ) -> None:
        self._folder = folder
        self._results = results
        self._workers = workers
        self._timings = timings
        self._display = display
        self._state: SweepState | None = None

    def started(self, plan: SweepPlan) -> None:
        self._state = SweepState(
            plan,
            self._folder,
            time.time(),
            workers=self._workers,
            timings=self._timings,
            results=self._results,
        )
        if self._display is None:
            self._display = choose_display()
        self._display.start(self._state.snapshot)

    def progress(self, progress: Progress) -> None:
        if self._state is not None and self._display is not None:
            self._state.add_progress(progress)
            self._display.refresh()

    def finished(self, result: RunResult) -> None:
        if self._state is not None and self._display is not None:
            self._state.add_result(result)
            self._display.show_result(result, self._state.done_count)

    def close(self) -> None:
        if self._display is not None and self._state is not None:
            self._display.stop()


def is_wanted(progress: bool) -> bool:
    """Whether to show progress. Not with ``FLOPS_FIT_PROGRESS=0``, and not in a worker process."""
    if not progress or os.environ.get(SWITCH, "").strip().lower() in ("0", "false", "no", "off"):
        return False
    is_worker = multiprocessing.parent_process() is not None or os.environ.get("RANK", "0") != "0"
    return not is_worker
