"""The sweep driver: dispatch the missing runs, store each result, call loggers. A failure is a result.

Only the driver accesses the store and the loggers. Several drivers may train one study at the same time: a driver
claims each run before training it, and the claims of a dead driver expire.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flops_fit_core.plugins.outbox import Outbox
from flops_fit_core.plugins.protocols import Executor, JobEnded, Logger, ResultStore
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Job, Progress, RunError, RunResult, RunSpec, SweepPlan
from flops_fit_core.study.heartbeat import Heartbeat, remove_dead_drivers
from flops_fit_core.training.checkpoint_files import TrajectoryFolder

LEASE_SECONDS = 60.0
"""A claim expires this long after its driver last renewed it."""
TURN_SECONDS = 0.5
"""The longest wait for an event of the executor before claims are renewed."""

logger = logging.getLogger("flops_fit")


class Sweep:
    """One driver's pass over a plan.

    Args:
        plan: The runs to train.
        store: Receives the results.
        executor: Trains the jobs. Always closed at the end.
        registry: Its observers are called with each result and at the end.
        loggers: Called with every event. A logger that raises an exception is logged and closed; the sweep
            continues.
        retry_failed: Whether to retry runs with a failed latest attempt, once per call of :meth:`run`. A run that
            loses its worker is retried immediately from its last checkpoint. If it loses a second worker, it has
            failed.
        retrain: Whether to train finished runs again, as further attempts.
        only: Ids of the runs to train; None for all.
        folder: The study's folder, with checkpoints that are deleted when no run needs them; None without one.
    """

    def __init__(
        self,
        plan: SweepPlan,
        store: ResultStore,
        executor: Executor,
        registry: Registry,
        *,
        loggers: Sequence[Logger] = (),
        retry_failed: bool = True,
        retrain: bool = False,
        only: Collection[str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.store = store
        self.executor = executor
        self.registry = registry
        self.loggers = list(loggers)
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._retrain = retrain
        self._only = None if only is None else set(only)
        self._retry_failed = retry_failed
        self._waiting: deque[Job] = deque()
        self._claimed_elsewhere: list[Job] = []
        """Jobs with a run that another driver has claimed."""
        self._running: dict[str, Job] = {}
        self._lost: set[str] = set()
        """Ids of runs that lost a worker."""
        self._finished: set[str] = set()
        self._renewed = 0.0

    def run(self) -> list[RunResult]:
        """Train the missing runs. Returns the latest result of every run of the plan that has a result.

        Raises StoreError if a result cannot be stored. KeyboardInterrupt stops the workers first.
        """
        try:
            self._call_loggers("started", self.plan)
            if self.folder is not None:
                self._collect_outbox()
                delete_checkpoints(self.plan, self.store, self.folder, branches=False)
            self._waiting = deque(self._missing_jobs())
            self._release_claims_of_dead_drivers()
            while self._waiting or self._running or self._claimed_elsewhere:
                self._dispatch()
                for event in self.executor.events(TURN_SECONDS):
                    self._handle(event)
                    self._dispatch()
                    self._renew_claims()
                self._renew_claims()
                if not self._running and self._claimed_elsewhere:
                    self._wait_for_other_drivers()
        finally:
            self._close()
        results = self.results()
        self.registry.sweep_finished(self.plan, results)
        return results

    def _close(self) -> None:
        """Stop the workers, store their last results, release the claims of unfinished runs."""
        self.executor.close()
        for event in self.executor.events(0):
            # Stopped jobs have not failed: the next driver trains them.
            if isinstance(event, RunResult):
                self._store_result(event)
        for job in self._running.values():
            self._release(_names_to_claim(job))
        self._call_loggers("close")

    def results(self) -> list[RunResult]:
        """The latest result of every run of the plan that has a result, in the plan's order."""
        latest = {result.id: result for result in self.store.results()}
        return [latest[run.id] for run in self.plan.runs if run.id in latest]

    def _collect_outbox(self) -> None:
        """Store results of workers that outlived their driver. A live driver has claimed its runs."""
        if self.folder is None:
            return
        planned = {run.id for run in self.plan.runs}
        for result in Outbox(self.folder).results():
            if result.id in planned and self._claim([result.id]):
                self._store_result(result)
                self._release([result.id])

    def _release_claims_of_dead_drivers(self) -> None:
        """Release the claims of drivers that died on this machine, without waiting for their expiry."""
        dead = remove_dead_drivers(self.folder) if self.folder is not None else []
        for owner in dead:
            for name in (name for job in self._waiting for name in _names_to_claim(job)):
                self.store.release(name, owner)

    # ------------------------------------------------------------------ dispatch and claims

    def _missing_jobs(self) -> list[Job]:
        latest = {result.id: result for result in self.store.results()}
        missing, attempts = set(), {}
        for run in self.plan.runs:
            result = latest.get(run.id)
            if self._only is not None and run.id not in self._only:
                continue
            if result is None:
                missing.add(run.id)
            elif self._retrain or (not result.is_finished and self._retry_failed):
                missing.add(run.id)
                attempts[run.id] = result.attempt + 1
        return self.plan.jobs(missing, attempts)

    def _dispatch(self) -> None:
        while self._waiting and len(self._running) < self.executor.capacity:
            job = self._waiting.popleft()
            if not self._claim(_names_to_claim(job)):
                self._claimed_elsewhere.append(job)
                continue
            remaining = self._without_finished_runs(job)
            needed = _names_to_claim(remaining) if remaining else ()
            self._release(set(_names_to_claim(job)).difference(needed))
            if remaining is not None:
                self._running[job.id] = remaining
                self.executor.submit(remaining)

    def _claim(self, names: Sequence[str]) -> bool:
        """Claim all names, or none of them and return False."""
        for count, name in enumerate(names):
            if not self.store.claim(name, self.owner, LEASE_SECONDS):
                self._release(names[:count])
                return False
        return True

    def _without_finished_runs(self, job: Job) -> Job | None:
        """The job without runs that another driver finished after this driver read the store; None if all are."""
        return job.only(lambda run: not self._has_result(run, job))

    def _has_result(self, run: RunSpec, job: Job) -> bool:
        result = self.store.get(run.id)
        return result is not None and result.attempt >= job.attempts.get(run.id, 1)

    def _wait_for_other_drivers(self) -> None:
        """Other drivers have claimed all remaining runs: wait for their results, or for a claim to expire."""
        time.sleep(TURN_SECONDS)
        self._collect_outbox()
        jobs = (job for job in self._claimed_elsewhere if self._without_finished_runs(job) is not None)
        self._waiting = deque(jobs)
        self._claimed_elsewhere = []

    def _renew_claims(self) -> None:
        if time.monotonic() - self._renewed < LEASE_SECONDS / 4:
            return
        self._renewed = time.monotonic()
        for listener in self.loggers:
            if isinstance(listener, Heartbeat):
                with suppress(OSError):
                    listener.write()
        for name in (name for job in self._running.values() for name in _names_to_claim(job)):
            if not self.store.renew(name, self.owner, LEASE_SECONDS):
                logger.warning("run %s: another driver has taken it over", name)

    def _release(self, names: Iterable[str]) -> None:
        for name in names:
            self.store.release(name, self.owner)

    # ------------------------------------------------------------------ events

    def _handle(self, event: Progress | RunResult | JobEnded) -> None:
        if isinstance(event, Progress):
            self._call_loggers("progress", event)
        elif isinstance(event, RunResult):
            self._store_result(event)
        else:
            self._end_job(event)

    def _store_result(self, result: RunResult) -> None:
        self.store.add(result)
        if self.folder is not None:
            Outbox(self.folder).remove(result.id)
        if result.is_finished:
            self._finished.add(result.id)
        self.registry.run_finished(result.run, result)
        self._call_loggers("finished", result)

    def _end_job(self, ended: JobEnded) -> None:
        job = self._running.pop(ended.job)
        lost = [run for run in job.runs if not self._has_result(run, job)]
        for run in lost:
            error = _lost_worker(ended.error or "")
            attempt = job.attempts.get(run.id, 1)
            self._store_result(RunResult(run=run, status="failed", attempt=attempt, error=error))
        if self.folder is not None:
            for trajectory in job.trajectories:
                if self._finished.issuperset(run.id for run in trajectory.runs):
                    TrajectoryFolder(self.folder, trajectory.id).forget_latest()
        self._release(_names_to_claim(job))
        if self._retry_failed:
            attempts = {run.id: job.attempts.get(run.id, 1) + 1 for run in lost if run.id not in self._lost}
            self._waiting.extend(self.plan.jobs(attempts, attempts))
        self._lost.update(run.id for run in lost)

    def _call_loggers(self, method: str, *arguments: Any) -> None:
        for listener in list(self.loggers):
            try:
                getattr(listener, method)(*arguments)
            except Exception:
                logger.exception("logger %s stops: %s failed", type(listener).__name__, method)
                self.loggers.remove(listener)
                if method != "close":
                    with suppress(Exception):
                        listener.close()


def _names_to_claim(job: Job) -> list[str]:
    """Ids of a job's runs, and of its trajectories, which own the checkpoints."""
    return [name for item in job.trajectories for name in (item.id, *(run.id for run in item.runs))]


def delete_checkpoints(
    plan: SweepPlan, store: ResultStore, folder: Path, *, branches: bool = True, unfinished: bool = False
) -> int:
    """Delete the checkpoints of trajectories with finished runs only. Returns the bytes freed.

    Trajectories that a driver has claimed are skipped.

    Args:
        branches: Whether to delete also the checkpoints from which a longer run could branch off.
        unfinished: Whether to delete also the checkpoints of trajectories with unfinished runs.
    """
    finished = {result.id for result in store.results() if result.is_finished}
    owner = f"clean:{uuid.uuid4().hex}"
    freed = 0
    for trajectory in plan.trajectories:
        checkpoints = TrajectoryFolder(folder, trajectory.id)
        done = finished.issuperset(run.id for run in trajectory.runs)
        if not checkpoints.path.exists() or not (done or unfinished):
            continue
        if store.claim(trajectory.id, owner, LEASE_SECONDS):
            freed += checkpoints.remove() if branches else checkpoints.forget_latest()
            store.release(trajectory.id, owner)
    return freed


def count_states(plan: SweepPlan, results: Sequence[RunResult]) -> dict[str, int]:
    """Number of runs per state: ``waiting``, or the status of the latest result."""
    latest = {result.id: result.status for result in results}
    states: dict[str, int] = {"waiting": 0, "completed": 0, "diverged": 0, "failed": 0}
    for run in plan.runs:
        states[latest.get(run.id, "waiting")] += 1
    return states


def states_by_run(plan: SweepPlan, results: Sequence[RunResult]) -> dict[str, str]:
    """Run id -> ``waiting``, ``completed``, ``diverged`` or ``failed``."""
    latest = {result.id: str(result.status) for result in results}
    return {run.id: latest.get(run.id, "waiting") for run in plan.runs}


def _lost_worker(reason: str) -> RunError:
    """The error of a run with a worker that ended without a result. A traceback in the reason is split off."""
    cause, colon, traceback = reason.partition(": Traceback (most recent call last):")
    if not colon:
        return RunError(type="WorkerLost", message=reason or "the worker gave no result")
    last = reason.rstrip().rpartition("\n")[2].strip()
    return RunError(type="WorkerLost", message=f"{cause}: {last}", traceback=f"{colon[2:]}{traceback}")
