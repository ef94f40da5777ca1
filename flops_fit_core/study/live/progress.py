"""The logger that shows the progress of a sweep to the person who started it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence

from flops_fit_core.plugins.protocols import Logger, ResultStore
from flops_fit_core.records import Progress, RunResult, SweepPlan
from flops_fit_core.study.live.displays import Display, choose_display
from flops_fit_core.study.live.other_drivers import OtherDriversReader, count_workers
from flops_fit_core.study.live.state import SweepState

SWITCH = "FLOPS_FIT_PROGRESS"
"""Environment variable: 0 shows no progress."""


class SweepProgress(Logger):
    """Shows a sweep while it trains: in a terminal, in a notebook, or as a line per finished run.

    With other drivers of the study, it shows the runs of all of them: see :meth:`observe`.

    Args:
        folder: The study's folder as it is typed in commands.
        results: Results from before the sweep that count as done.
        ignored: Results from before the sweep of runs that are trained again.
        workers: Jobs that this driver trains at the same time; None if unknown.
        timings: Run id -> tokens per second, measured before the sweep.
        other_drivers: Reads the study's other drivers; None without a folder that they could share.
        display: By default the one for standard error of this process.
    """

    def __init__(
        self,
        folder: str,
        results: Sequence[RunResult] = (),
        *,
        ignored: Sequence[RunResult] = (),
        workers: int | None = None,
        timings: Mapping[str, float] | None = None,
        other_drivers: OtherDriversReader | None = None,
        display: Display | None = None,
    ) -> None:
        self._folder = folder
        self._results = results
        self._ignored = ignored
        self._other_drivers = other_drivers
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
            ignored=self._ignored,
        )
        if self._display is None:
            self._display = choose_display()
        self._display.start(self._state.snapshot)

    def progress(self, progress: Progress) -> None:
        if self._state is not None and self._display is not None:
            self._state.add_progress(progress)
            self._display.refresh()

    def finished(self, result: RunResult) -> None:
        if self._state is not None and self._display is not None and self._state.add_result(result):
            self._display.show_result(result, self._state.done_count)

    def observe(self, store: ResultStore, *, last: bool = False) -> None:
        """Add the results and the progress of the study's other drivers, if they are due.

        The driver calls it often, between events of its executor, with its open store. ``last``: the sweep ends.
        """
        if self._state is None or self._display is None or self._other_drivers is None:
            return
        others = self._other_drivers.read_if_due(store, last=last)
        if others is None:
            return
        for result in sorted(others.results, key=lambda result: result.finished):
            if self._state.add_result(result):
                self._display.show_result(result, self._state.done_count, elsewhere=True)
        elsewhere = count_workers(others.drivers) if others.drivers else 0
        workers = None if self._workers is None or elsewhere is None else self._workers + elsewhere
        started = min((driver.started for driver in others.drivers), default=time.time())
        self._state.add_other_drivers(others.running, started, workers, 1 + len(others.drivers))
        self._display.refresh()

    def close(self) -> None:
        if self._display is not None and self._state is not None:
            self._display.stop()


def is_wanted(progress: bool) -> bool:
    """Whether to show progress. Not with ``FLOPS_FIT_PROGRESS=0``, and not in a worker process."""
    if not progress or os.environ.get(SWITCH, "").strip().lower() in ("0", "false", "no", "off"):
        return False
    is_worker = multiprocessing.parent_process() is not None or os.environ.get("RANK", "0") != "0"
    return not is_worker
