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
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from flops_fit_core.errors import ClaimLost, StoreError
from flops_fit_core.plugins.outbox import Outbox, OutboxEntry
from flops_fit_core.plugins.protocols import Executor, JobEnded, Logger, ResultStore
from flops_fit_core.plugins.protocols.stores import latest_attempts
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Job, Progress, RunError, RunResult, RunSpec, SweepPlan
from flops_fit_core.study.claims import ClaimRenewal, Claims
from flops_fit_core.study.directory import remove_temporary_files
from flops_fit_core.study.heartbeat import Heartbeat, remove_dead_drivers
from flops_fit_core.study.prune import delete_checkpoints
from flops_fit_core.study.result_writer import ResultWriter
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
        open_store: Opens the store again, for the thread that renews claims. None for a store that cannot be
            opened twice: its claims are renewed between events.
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
        open_store: Callable[[], ResultStore] | None = None,
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
        self._given_up: set[str] = set()
        """Ids of running jobs that were cancelled because another driver has their runs."""
        self._lost: set[str] = set()
        """Ids of runs that lost a worker."""
        self._finished: set[str] = set()
        self._outbox = None if folder is None else Outbox(folder)
        self._claims = Claims(store, self.owner, LEASE_SECONDS)
        self._writer = ResultWriter(store, self._claims, self._outbox)
        self._open_store = open_store if store.shares_claims else None
        self._renewal = ClaimRenewal(self.owner, LEASE_SECONDS, executor.is_alive, None, None)

    def run(self) -> list[RunResult]:
        """Train the missing runs. Returns the latest result of every run of the plan that has a result.

        Raises StoreError if a result cannot be stored. KeyboardInterrupt stops the workers first.
        """
        try:
            self._start_renewal()
            self._call_loggers("started", self.plan)
            if self.folder is not None:
                remove_temporary_files(self.folder)
                self._collect_outbox()
                delete_checkpoints(self.plan, self.store, self.folder, branches=False)
            self._waiting = deque(self._missing_jobs())
            self._release_claims_of_dead_drivers(self._waiting)
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
        try:
            self.executor.close()
            for event in self.executor.events(0):
                # Stopped jobs have not failed: the next driver trains them.
                if isinstance(event, RunResult):
                    self._store_result(event)
        finally:
            self._renewal.stop()
            self._release_all_claims()
            self._call_loggers("close")

    def _release_all_claims(self) -> None:
        """On a full disk, claims cannot be released. The driver's file stays then: the next driver on this machine
        finds that this one is dead, and releases its claims without waiting for their end."""
        try:
            self._claims.release(self._claims.held)
        except StoreError as error:
            logger.warning("the claims of unfinished runs are not released: %s", error)
            for heartbeat in self._heartbeats():
                heartbeat.keep_file()

    def _heartbeats(self) -> list[Heartbeat]:
        return [listener for listener in self.loggers if isinstance(listener, Heartbeat)]

    def _start_renewal(self) -> None:
        heartbeats = self._heartbeats()
        beat = heartbeats[0].write if heartbeats else None
        self._renewal = ClaimRenewal(
            self.owner, self._claims.seconds, self.executor.is_alive, self._open_store, beat
        )
        self._renewal.start()

    def results(self) -> list[RunResult]:
        """The latest result of every run of the plan that has a result, in the plan's order."""
        latest = {result.id: result for result in self.store.results()}
        return [latest[run.id] for run in self.plan.runs if run.id in latest]

    def _collect_outbox(self) -> None:
        """Store results of workers that outlived their driver. A live driver has claimed its runs."""
        if self._outbox is None:
            return
        planned = {run.id for run in self.plan.runs}
        for entry in self._outbox.entries():
            result = entry.result
            if result is not None and result.id in planned and self._claims.take([result.id]):
                # With its own token: a result of an earlier claim replaces no finished result.
                self._store_result(result, entry)
                self._claims.release([result.id])

    def _release_claims_of_dead_drivers(self, jobs: Collection[Job]) -> None:
        """Release the claims of drivers that died on this machine, without waiting for their expiry."""
        dead = remove_dead_drivers(self.folder) if self.folder is not None else []
        for owner in dead:
            for name in (name for job in jobs for name in _names_to_claim(job)):
                self.store.release(name, owner)

    # ------------------------------------------------------------------ dispatch and claims

    def _missing_jobs(self) -> list[Job]:
        stored = list(self.store.all_attempts())
        latest = {result.id: result for result in latest_attempts(stored)}
        numbers: dict[str, int] = {}
        for attempt in stored:
            numbers[attempt.id] = max(attempt.attempt, numbers.get(attempt.id, 0))
        missing, attempts = set(), {}
        for run in self.plan.runs:
            result = latest.get(run.id)
            if self._only is not None and run.id not in self._only:
                continue
            if result is None or self._retrain or (not result.is_finished and self._retry_failed):
                missing.add(run.id)
                if run.id in numbers:
                    attempts[run.id] = numbers[run.id] + 1
        return self.plan.jobs(missing, attempts)

    def _dispatch(self) -> None:
        while self._waiting and len(self._running) < self.executor.capacity:
            job = self._waiting.popleft()
            names = _names_to_claim(job)
            if not self._claims.take(names):
                self._claimed_elsewhere.append(job)
                continue
            remaining = self._without_finished_runs(job)
            needed = _names_to_claim(remaining) if remaining else []
            self._claims.release(set(names).difference(needed))
            if remaining is not None:
                self._submit(remaining, needed)

    def _submit(self, job: Job, names: Sequence[str]) -> None:
        tokens = {name: token for name in names if (token := self._claims.token(name)) is not None}
        try:
            for trajectory in job.trajectories if tokens else ():
                if not self._give_checkpoints(trajectory.id, tokens.get(trajectory.id)):
                    tokens.pop(trajectory.id, None)
        except (TimeoutError, ClaimLost) as error:
            logger.warning("job %s waits for another driver, or for a paused process: %s", job.id, error)
            self._claims.release(names)
            self._claimed_elsewhere.append(job)
            return
        job = job.model_copy(update={"claim_tokens": tokens})
        self._running[job.id] = job
        self._renewal.hold(job.id, names)
        self.executor.submit(job)

    def _give_checkpoints(self, trajectory: str, token: str | None) -> bool:
        """Let only workers of this driver write the checkpoints of a trajectory.

        Returns whether workers must compare the token. Raises TimeoutError if a paused process holds the lock,
        and ClaimLost if this driver was paused and another has claimed the trajectory.
        """
        if self.folder is None or token is None:
            return False
        try:
            if not TrajectoryFolder(self.folder, trajectory, token).take(partial(self._claims.holds, trajectory)):
                raise ClaimLost(f"another driver has claimed the trajectory {trajectory}")
        except TimeoutError:
            raise
        except OSError as error:
            logger.warning("the checkpoints of trajectory %s cannot be claimed: %s", trajectory, error)
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
        self._release_claims_of_dead_drivers(self._claimed_elsewhere)
        self._collect_outbox()
        jobs = (job for job in self._claimed_elsewhere if self._without_finished_runs(job) is not None)
        self._waiting = deque(jobs)
        self._claimed_elsewhere = []

    def _renew_claims(self) -> None:
        self._renewal.renew_if_due(self.store)
        while self._renewal.lost:
            lost = self._renewal.lost.pop()
            for job in list(self._running.values()):
                if lost in _names_to_claim(job) and not self._claims.holds(lost):
                    self._give_up(job)

    def _give_up(self, job: Job) -> None:
        """Another driver has a claim of this job. Cancel the job, unless runs remain that only this driver has."""
        if job.id in self._given_up:
            return
        remaining = self._without_finished_runs(job)
        if remaining is not None and all(map(self._claims.holds, _names_to_claim(remaining))):
            self._renewal.hold(job.id, _names_to_claim(remaining))
            logger.warning("job %s: another driver has finished some of its runs; the others continue", job.id)
            return
        reason = "finished its runs" if remaining is None else "taken over its runs"
        logger.warning("job %s is cancelled: another driver has %s", job.id, reason)
        self._given_up.add(job.id)
        self.executor.cancel(job.id)

    # ------------------------------------------------------------------ events

    def _handle(self, event: Progress | RunResult | JobEnded) -> None:
        if isinstance(event, Progress):
            self._call_loggers("progress", event)
        elif isinstance(event, RunResult):
            self._store_result(event)
        else:
            self._end_job(event)

    def _store_result(self, result: RunResult, collected: OutboxEntry | None = None) -> None:
        """Store a result. Observers and loggers are called with results that count."""
        stored = self._writer.add(result, collected)
        if stored is None:
            return
        if stored.is_finished:
            self._finished.add(stored.id)
        self.registry.run_finished(stored.run, stored)
        self._call_loggers("finished", stored)

    def _end_job(self, ended: JobEnded) -> None:
        job = self._running.pop(ended.job)
        self._renewal.drop(job.id)
        given_up = job.id in self._given_up
        self._given_up.discard(job.id)
        remaining = self._without_finished_runs(job)
        if remaining is not None and (given_up or not all(map(self._claims.holds, _names_to_claim(remaining)))):
            # Another driver trains these runs, or will give their claims back.
            self._claimed_elsewhere.append(remaining)
        elif remaining is not None:
            self._fail(remaining, ended.error or "")
        if self.folder is not None:
            for trajectory in job.trajectories:
                checkpoints = TrajectoryFolder(self.folder, trajectory.id, job.claim_tokens.get(trajectory.id))
                if self._finished.issuperset(run.id for run in trajectory.runs):
                    checkpoints.forget_latest()
                else:
                    checkpoints.remove_if_empty()
        self._claims.release(_names_to_claim(job))

    def _fail(self, job: Job, reason: str) -> None:
        """Store a failed result for each run of a job that lost its worker. Retry a run once."""
        error = _lost_worker(reason)
        for run in job.runs:
            attempt = job.attempts.get(run.id, 1)
            self._store_result(RunResult(run=run, status="failed", attempt=attempt, error=error))
        if self._retry_failed:
            attempts = {
                run.id: max((attempt.attempt for attempt in self.store.attempts(run.id)), default=0) + 1
                for run in job.runs
                if run.id not in self._lost
            }
            self._waiting.extend(self.plan.jobs(attempts, attempts))
        self._lost.update(run.id for run in job.runs)

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


def _lost_worker(reason: str) -> RunError:
    """The error of a run with a worker that ended without a result. A traceback in the reason is split off."""
    cause, colon, traceback = reason.partition(": Traceback (most recent call last):")
    if not colon:
        return RunError(type="WorkerLost", message=reason or "the worker gave no result")
    last = reason.rstrip().rpartition("\n")[2].strip()
    return RunError(type="WorkerLost", message=f"{cause}: {last}", traceback=f"{colon[2:]}{traceback}")
