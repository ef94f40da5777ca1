"""The state of a sweep at a moment, as the live view shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flops_fit_core.records import Progress, RunResult, RunSpec, SweepPlan
from flops_fit_core.study.live.law_so_far import LawSoFar
from flops_fit_core.study.time_left import TimeEstimate, TimeLeft

ESTIMATE_SECONDS = 1.0
"""The shortest time between two estimates of the time left."""


@dataclass(frozen=True)
class Snapshot:
    """Everything that the live view shows."""

    plan: SweepPlan
    counts: Mapping[str, int]
    """Runs by state: completed, diverged, failed, running, waiting."""
    running: Sequence[tuple[RunSpec, Progress]]
    """Runs in training, those of the largest budget first."""
    elapsed: float
    """Seconds since the first driver started."""
    estimate: TimeEstimate | None
    workers: int | None
    """Jobs that all drivers train at the same time; None if unknown."""
    processes: int
    """Drivers of the study, this one included."""
    best: RunResult | None
    """The completed run with the lowest loss."""
    law: str
    """The law so far; empty without one."""
    failed: Sequence[RunResult]
    """Runs that failed and are not trained again."""
    folder: str
    """The study's folder, for commands."""

    @property
    def done(self) -> int:
        return self.counts["completed"] + self.counts["diverged"] + self.counts["failed"]

    @property
    def share_done(self) -> float:
        """Share of the sweep's training time; of its runs before there is an estimate."""
        if self.estimate is not None:
            return self.estimate.share_done
        return self.done / max(1, len(self.plan.runs))


class SweepState:
    """Collects results and progress of a sweep. Thread-safe: a display reads it while the driver adds events.

    Args:
        plan: All runs.
        folder: The study's folder, for commands.
        started: When the driver started: Unix time in seconds.
        workers: Jobs that are trained at the same time; None if unknown.
        timings: Run id -> tokens per second, measured before the sweep.
        results: Results from before the sweep, which count as done.
        ignored: Results from before the sweep of runs that are trained again.
    """

    def __init__(
        self,
        plan: SweepPlan,
        folder: str,
        started: float,
        *,
        workers: int | None = None,
        timings: Mapping[str, float] | None = None,
        results: Sequence[RunResult] = (),
        ignored: Sequence[RunResult] = (),
    ) -> None:
        self.plan = plan
        self.workers = workers
        self.processes = 1
        self._folder = folder
        self.started = started
        self._runs = {run.id: run for run in plan.runs}
        self._results = {result.id: result for result in results if result.id in self._runs}
        self._done = set(self._results)
        self._seen = {(result.id, result.attempt) for result in (*results, *ignored)}
        self._running: dict[str, Progress] = {}
        self._running_elsewhere: dict[str, Progress] = {}
        """Progress of the runs of other drivers."""
        self._time_left = TimeLeft(plan, timings)
        self._law = LawSoFar()
        self._estimate: TimeEstimate | None = None
        self._estimated = -float("inf")
        self._cost = 0.0
        self._lock = threading.Lock()

    @property
    def done_count(self) -> int:
        """Number of runs that are not trained any more."""
        with self._lock:
            return len(self._done)

    def add_result(self, result: RunResult) -> bool:
        """Add a result of this sweep, and fit the law again if it is due. Returns whether it was new."""
        with self._lock:
            key = (result.id, result.attempt)
            if result.id not in self._runs or key in self._seen:
                return False
            self._seen.add(key)
            self._results[result.id] = result
            self._done.add(result.id)
            self._running.pop(result.id, None)
            self._running_elsewhere.pop(result.id, None)
            completed = self._completed()
        if result.loss is not None:
            self._law.update(self.plan, completed)
        return True

    def add_progress(self, progress: Progress) -> None:
        """Add progress. A run that failed and is trained again is not done."""
        with self._lock:
            self._add_progress(progress, self._running)

    def add_other_drivers(
        self, running: Sequence[Progress], started: float, workers: int | None, processes: int
    ) -> None:
        """Replace the progress of the other drivers.

        Args:
            running: The runs that they train.
            started: When the first of them started: Unix time in seconds.
            workers: Jobs that all drivers train at the same time, with those of this one; None if unknown.
            processes: All drivers, this one included.
        """
        with self._lock:
            self._running_elsewhere = {}
            self.workers, self.processes = workers, processes
            self.started = min(self.started, started)
            for item in running:
                if item.run not in self._running:
                    self._add_progress(item, self._running_elsewhere)

    def _add_progress(self, progress: Progress, running: dict[str, Progress]) -> None:
        if progress.run not in self._runs:
            return
        result = self._results.get(progress.run)
        if result is not None and progress.run in self._done and progress.attempt <= result.attempt:
            return  # older than the result
        self._done.discard(progress.run)
        running[progress.run] = progress

    def replace(self, results: Sequence[RunResult], running: Sequence[Progress]) -> None:
        """Replace everything by results and progress that were read from a study."""
        with self._lock:
            before = len(self._completed())
            self._results = {result.id: result for result in results if result.id in self._runs}
            self._done = set(self._results)
            self._running = {}
            completed = self._completed()
        for item in running:
            self.add_progress(item)
        if len(completed) != before:
            self._law.update(self.plan, completed)

    def snapshot(self, now: float | None = None) -> Snapshot:
        """The state at the Unix time ``now``."""
        with self._lock:
            running = [(self._runs[item.run], item) for item in self._all_running().values()]
            counts = dict.fromkeys(("completed", "diverged", "failed"), 0)
            for run_id in self._done:  # no run in training is among them
                counts[self._results[run_id].status] += 1
            counts["running"] = len(running)
            counts["waiting"] = len(self._runs) - len(running) - len(self._done)
            failed = [self._results[key] for key in self._done if self._results[key].status == "failed"]
            return Snapshot(
                plan=self.plan,
                counts=counts,
                running=sorted(running, key=lambda pair: (-pair[0].budget, -pair[0].params, pair[0].seed)),
                elapsed=max(0.0, (time.time() if now is None else now) - self.started),
                estimate=self._estimate_if_due(),
                workers=self.workers,
                processes=self.processes,
                best=min(self._completed(), key=lambda result: result.loss or 0.0, default=None),
                law=self._law.text,
                failed=sorted(failed, key=lambda result: result.finished),
                folder=self._folder,
            )

    def _completed(self) -> list[RunResult]:
        return [result for result in self._results.values() if result.loss is not None]

    def _all_running(self) -> dict[str, Progress]:
        return {**self._running_elsewhere, **self._running}

    def _estimate_if_due(self) -> TimeEstimate | None:
        """The time left. With thousands of runs an estimate takes a while, so it is made less often."""
        now = time.monotonic()
        if now - self._estimated >= max(ESTIMATE_SECONDS, 50 * self._cost):
            results = list(self._results.values())
            running = self._all_running().values()
            self._estimate = self._time_left.estimate(results, self._done, running, self.workers)
            self._estimated = time.monotonic()
            self._cost = self._estimated - now
        return self._estimate
