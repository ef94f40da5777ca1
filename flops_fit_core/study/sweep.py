"""The sweep loop: skip what is finished, dispatch, store, observe. What fails is a result.

Only this loop touches the store and the loggers. Several drivers may run one study at once: each run is
claimed before it is trained, and a claim whose driver died runs out.
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
from flops_fit_core.study.heartbeat import Heartbeat, dead_owners
from flops_fit_core.training.checkpoint_files import TrajectoryFolder

LEASE_SECONDS = 60.0
"""For how long a run stays claimed after its driver was last heard of."""
TURN_SECONDS = 0.5
"""How long the loop listens before it looks at other things."""

logger = logging.getLogger("flops_fit")


class Sweep:
    """One driver's pass over a plan.

    Args:
        plan: What to train.
        store: Where results are kept.
        executor: Where jobs run. Closed at the end, whatever happens.
        registry: Whose observers are told of each result and of the end.
        loggers: Told of everything; what one raises is reported once and never stops the sweep.
        retry_failed: Whether runs whose latest attempt failed are tried again (once a call of :meth:`run`). A run
            whose worker is lost is tried again at once, from its last checkpoint; lost again, it has failed.
        again: Whether finished runs are trained again, as further attempts.
        only: Ids of the runs to train; None: all.
        folder: The study's; checkpoints in it are deleted once nothing goes on from them. None: there is none.
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
        again: bool = False,
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
        self._again = again
        self._only = None if only is None else set(only)
        self._retry_failed = retry_failed
        self._waiting: deque[Job] = deque()
        self._elsewhere: list[Job] = []
        self._running: dict[str, Job] = {}
        self._lost: set[str] = set()
        """Runs whose worker was lost once."""
        self._finished: set[str] = set()
        self._renewed = 0.0

    def run(self) -> list[RunResult]:
        """Train what is missing. Returns the latest result of every run of the plan that has one.

        Raises StoreError where results can no longer be kept; KeyboardInterrupt stops the workers first.
        """
        try:
            self._tell("started", self.plan)
            if self.folder is not None:
                self._collect()
                forget_checkpoints(self.plan, self.store, self.folder, branches=False)
            self._waiting = deque(self._missing_jobs())
            self._free_what_the_dead_hold()
            while self._waiting or self._running or self._elsewhere:
                self._dispatch()
                for event in self.executor.events(TURN_SECONDS):
                    self._handle(event)
                    self._dispatch()
                    self._renew_claims()
                self._renew_claims()
                if not self._running and self._elsewhere:
                    self._look_elsewhere()
        finally:
            self._close()
        results = self.results()
        self.registry.sweep_finished(self.plan, results)
        return results

    def _close(self) -> None:
        """Stop the workers, keep what they still gave, let others have what was not done."""
        self.executor.close()
        for event in self.executor.events(0):
            # Jobs that were stopped have failed at nothing: they are trained by the next run.
            if isinstance(event, RunResult):
                self._keep(event)
        for job in self._running.values():
            self._release(_claims(job))
        self._tell("close")

    def results(self) -> list[RunResult]:
        """The latest result of every run of the plan that has one, in the plan's order."""
        kept = {result.id: result for result in self.store.results()}
        return [kept[run.id] for run in self.plan.runs if run.id in kept]

    def _collect(self) -> None:
        """Store what was finished for drivers that are not there any more; those that are collect their own."""
        if self.folder is None:
            return
        planned = {run.id for run in self.plan.runs}
        for result in Outbox(self.folder).results():
            if result.id in planned and self._claim([result.id]):
                self._keep(result)
                self._release([result.id])

    def _free_what_the_dead_hold(self) -> None:
        """Claims of drivers that died on this machine, without waiting for them to run out."""
        dead = dead_owners(self.folder) if self.folder is not None else []
        for owner in dead:
            for name in (name for job in self._waiting for name in _claims(job)):
                self.store.release(name, owner)

    # ------------------------------------------------------------------ what to train

    def _missing_jobs(self) -> list[Job]:
        latest = {result.id: result for result in self.store.results()}
        missing, attempts = set(), {}
        for run in self.plan.runs:
            result = latest.get(run.id)
            if self._only is not None and run.id not in self._only:
                continue
            if result is None:
                missing.add(run.id)
            elif self._again or (not result.is_finished and self._retry_failed):
                missing.add(run.id)
                attempts[run.id] = result.attempt + 1
        return self.plan.jobs(missing, attempts)

    def _dispatch(self) -> None:
        while self._waiting and len(self._running) < self.executor.capacity:
            job = self._waiting.popleft()
            if not self._claim(_claims(job)):
                self._elsewhere.append(job)
                continue
            left = self._left_of(job)
            self._release(set(_claims(job)).difference(_claims(left) if left else ()))
            if left is not None:
                self._running[job.id] = left
                self.executor.submit(left)

    def _claim(self, names: Sequence[str]) -> bool:
        """All of them or none."""
        for count, name in enumerate(names):
            if not self.store.claim(name, self.owner, LEASE_SECONDS):
                self._release(names[:count])
                return False
        return True

    def _left_of(self, job: Job) -> Job | None:
        """The job without the runs to which another driver has given results between our look at the store and our
        claim; None where nothing is left."""
        return job.only(lambda run: not self._is_answered(run, job))

    def _is_answered(self, run: RunSpec, job: Job) -> bool:
        result = self.store.get(run.id)
        return result is not None and result.attempt >= job.attempts.get(run.id, 1)

    def _look_elsewhere(self) -> None:
        """Only runs that other drivers hold are left: wait for their results, or for a claim to run out."""
        time.sleep(TURN_SECONDS)
        self._collect()
        self._waiting = deque(job for job in self._elsewhere if self._left_of(job) is not None)
        self._elsewhere = []

    def _renew_claims(self) -> None:
        if time.monotonic() - self._renewed < LEASE_SECONDS / 4:
            return
        self._renewed = time.monotonic()
        for listener in self.loggers:
            if isinstance(listener, Heartbeat):
                with suppress(OSError):
                    listener.write()
        for name in (name for job in self._running.values() for name in _claims(job)):
            if not self.store.renew(name, self.owner, LEASE_SECONDS):
                logger.warning("run %s: another driver has taken it over", name)

    def _release(self, names: Iterable[str]) -> None:
        for name in names:
            self.store.release(name, self.owner)

    # ------------------------------------------------------------------ what comes back

    def _handle(self, event: Progress | RunResult | JobEnded) -> None:
        if isinstance(event, Progress):
            self._tell("progress", event)
        elif isinstance(event, RunResult):
            self._keep(event)
        else:
            self._end(event)

    def _keep(self, result: RunResult) -> None:
        self.store.add(result)
        if self.folder is not None:
            Outbox(self.folder).forget(result.id)
        if result.is_finished:
            self._finished.add(result.id)
        self.registry.run_finished(result.run, result)
        self._tell("finished", result)

    def _end(self, ended: JobEnded) -> None:
        job = self._running.pop(ended.job)
        lost = [run for run in job.runs if not self._is_answered(run, job)]
        for run in lost:
            error = _lost(ended.error or "")
            self._keep(RunResult(run=run, status="failed", attempt=job.attempts.get(run.id, 1), error=error))
        if self.folder is not None:
            for trajectory in job.trajectories:
                if self._finished.issuperset(run.id for run in trajectory.runs):
                    TrajectoryFolder(self.folder, trajectory.id).forget_latest()
        self._release(_claims(job))
        if self._retry_failed:
            again = {run.id: job.attempts.get(run.id, 1) + 1 for run in lost if run.id not in self._lost}
            self._waiting.extend(self.plan.jobs(again, again))
        self._lost.update(run.id for run in lost)

    def _tell(self, what: str, *arguments: Any) -> None:
        for listener in list(self.loggers):
            try:
                getattr(listener, what)(*arguments)
            except Exception:
                logger.exception("logger %s stops: %s failed", type(listener).__name__, what)
                self.loggers.remove(listener)
                if what != "close":
                    with suppress(Exception):
                        listener.close()


def _claims(job: Job) -> list[str]:
    """What a driver has to hold to train a job: its runs, and the trajectories whose checkpoints it writes."""
    return [name for one in job.trajectories for name in (one.id, *(run.id for run in one.runs))]


def forget_checkpoints(
    plan: SweepPlan, store: ResultStore, folder: Path, *, branches: bool = True, unfinished: bool = False
) -> int:
    """Delete checkpoints of trajectories whose runs are all finished (``unfinished``: of the others, too).

    ``branches``: also those that are kept so that a longer run can branch off. Returns the bytes that were freed.
    Leaves alone what a driver is working on.
    """
    finished = {result.id for result in store.results() if result.is_finished}
    owner = f"clean:{uuid.uuid4().hex}"
    freed = 0
    for trajectory in plan.trajectories:
        where = TrajectoryFolder(folder, trajectory.id)
        done = finished.issuperset(run.id for run in trajectory.runs)
        if not where.path.exists() or not (done or unfinished):
            continue
        if store.claim(trajectory.id, owner, LEASE_SECONDS):
            freed += where.remove() if branches else where.forget_latest()
            store.release(trajectory.id, owner)
    return freed


def count_states(plan: SweepPlan, results: Sequence[RunResult]) -> dict[str, int]:
    """How many runs of the plan are in each state: waiting, or their latest result's status."""
    latest = {result.id: result.status for result in results}
    states: dict[str, int] = {"waiting": 0, "completed": 0, "diverged": 0, "failed": 0}
    for run in plan.runs:
        states[latest.get(run.id, "waiting")] += 1
    return states


def states_by_run(plan: SweepPlan, results: Sequence[RunResult]) -> dict[str, str]:
    """Run id -> waiting, completed, diverged or failed."""
    latest = {result.id: str(result.status) for result in results}
    return {run.id: latest.get(run.id, "waiting") for run in plan.runs}


def _lost(reason: str) -> RunError:
    """The error of a run whose worker ended without a result. A traceback among its last words is kept as such."""
    how, colon, traceback = reason.partition(": Traceback (most recent call last):")
    if not colon:
        return RunError(type="WorkerLost", message=reason or "the worker gave no result")
    last = reason.rstrip().rpartition("\n")[2].strip()
    return RunError(type="WorkerLost", message=f"{how}: {last}", traceback=f"{colon[2:]}{traceback}")
