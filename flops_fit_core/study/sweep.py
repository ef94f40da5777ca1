"""The sweep driver: dispatch the missing runs, store each result, call loggers. A failure is a result.

Only the driver accesses the store and the loggers. Several drivers may train one study at the same time: a driver
claims each run before training it, and the claims of a dead driver expire.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from flops_fit_core.errors import ClaimLost, StoreError
from flops_fit_core.plugins.outbox import Outbox, OutboxEntry
from flops_fit_core.plugins.protocols import Executor, JobEnded, Logger, ResultStore
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Job, Progress, RunResult, SweepPlan
from flops_fit_core.study.checkpoints import delete_checkpoints, leave_checkpoints, take_checkpoints
from flops_fit_core.study.claims import ClaimRenewal, Claims, names_to_claim
from flops_fit_core.study.directory import remove_temporary_files
from flops_fit_core.study.heartbeat import Heartbeat, new_owner, remove_dead_drivers
from flops_fit_core.study.jobs import lost_worker, missing_jobs, retried_jobs, without_finished_runs
from flops_fit_core.study.live.progress import SweepProgress
from flops_fit_core.study.loggers import Loggers
from flops_fit_core.study.result_writer import ResultWriter

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
        heartbeat: Shows other processes that this driver lives; None without a folder.
        view: The logger that shows this sweep. It reads the runs of other drivers from the store.
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
        heartbeat: Heartbeat | None = None,
        view: SweepProgress | None = None,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.store = store
        self.executor = executor
        self.registry = registry
        self.owner = new_owner() if heartbeat is None else heartbeat.owner
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
        self._heartbeat = heartbeat
        self._view = view
        own_loggers: list[Logger | None] = [view, *loggers, heartbeat]
        self._loggers = Loggers(logger for logger in own_loggers if logger is not None)
        self._outbox = None if folder is None else Outbox(folder)
        self._claims = Claims(store, self.owner, LEASE_SECONDS)
        self._writer = ResultWriter(store, self._claims, self._outbox)
        self._renewal = ClaimRenewal(
            self.owner,
            LEASE_SECONDS,
            executor.is_alive,
            open_store if store.shares_claims else None,
            None if heartbeat is None else heartbeat.write,
        )

    def run(self) -> list[RunResult]:
        """Train the missing runs. Returns the latest result of every run of the plan that has a result.

        Raises StoreError if a result cannot be stored. KeyboardInterrupt stops the workers first.
        """
        try:
            self._renewal.start()
            self._loggers.call("started", self.plan)
            self._prepare()
            while self._waiting or self._running or self._claimed_elsewhere:
                self._dispatch()
                for event in self.executor.events(TURN_SECONDS):
                    self._handle(event)
                    self._dispatch()
                    self._renew_claims()
                    self._observe_other_drivers()
                self._renew_claims()
                self._observe_other_drivers()
                if not self._running and self._claimed_elsewhere:
                    self._wait_for_other_drivers()
            self._observe_other_drivers(last=True)
        finally:
            self._close()
        results = self.results()
        self.registry.sweep_finished(self.plan, results)
        return results

    def results(self) -> list[RunResult]:
        """The latest result of every run of the plan that has a result, in the plan's order."""
        latest = {result.id: result for result in self.store.results()}
        return [latest[run.id] for run in self.plan.runs if run.id in latest]

    # ------------------------------------------------------------------ start and end

    def _prepare(self) -> None:
        """Take over from drivers that died on this machine, and find the runs to train."""
        dead: list[str] = []
        if self.folder is not None:
            remove_temporary_files(self.folder)
            dead = remove_dead_drivers(self.folder)
            self._collect_outbox(dead)
            delete_checkpoints(self.plan, self.store, self.folder, branches=False)
        self._waiting.extend(
            missing_jobs(
                self.plan,
                self.store,
                only=self._only,
                retry_failed=self._retry_failed,
                retrain=self._retrain,
            )
        )
        self._release_claims_of(dead, self._waiting)

    def _collect_outbox(self, dead: Collection[str]) -> None:
        """Store results of workers that outlived their driver. A live driver has claimed its runs.

        Args:
            dead: Owners of claims that no driver needs.
        """
        entries = [] if self._outbox is None else self._outbox.entries()
        planned = {run.id for run in self.plan.runs} if entries else set()
        for entry in entries:
            result = entry.result
            if result is None or result.id not in planned:
                continue
            self._claims.release_of(dead, [result.id])
            if self._claims.take([result.id]):
                # With its own token: a result of an earlier claim replaces no finished result.
                self._store_result(result, entry)
                self._claims.release([result.id])

    def _release_claims_of(self, dead: Collection[str], jobs: Iterable[Job]) -> None:
        """Release the claims of dead drivers, without waiting for their expiry."""
        if dead:
            self._claims.release_of(dead, [name for job in jobs for name in names_to_claim(job)])

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
            self._loggers.call("close")

    def _release_all_claims(self) -> None:
        """On a full disk, claims cannot be released. The driver's file stays then: the next driver on this machine
        finds that this one is dead, and releases its claims without waiting for their end."""
        try:
            self._claims.release(self._claims.held)
        except StoreError as error:
            logger.warning("the claims of unfinished runs are not released: %s", error)
            if self._heartbeat is not None:
                self._heartbeat.keep_file()

    # ------------------------------------------------------------------ dispatch

    def _dispatch(self) -> None:
        while self._waiting and len(self._running) < self.executor.capacity:
            job = self._waiting.popleft()
            names = names_to_claim(job)
            if not self._claims.take(names):
                self._claimed_elsewhere.append(job)
                continue
            # Another driver may have finished runs since this one read the store.
            remaining = without_finished_runs(job, self.store)
            needed = [] if remaining is None else names_to_claim(remaining)
            self._claims.release(set(names).difference(needed))
            if remaining is not None:
                self._submit(remaining)

    def _submit(self, job: Job) -> None:
        names = names_to_claim(job)
        try:
            tokens = take_checkpoints(job, self._claims, self.folder)
        except (TimeoutError, ClaimLost) as error:
            logger.warning("job %s waits for another driver, or for a paused process: %s", job.id, error)
            self._claims.release(names)
            self._claimed_elsewhere.append(job)
            return
        job = job.model_copy(update={"claim_tokens": tokens})
        self._running[job.id] = job
        self._renewal.hold(job.id, names)
        self.executor.submit(job)

    # ------------------------------------------------------------------ other drivers

    def _wait_for_other_drivers(self) -> None:
        """Other drivers have claimed all remaining runs: wait for their results, or for a claim to expire."""
        time.sleep(TURN_SECONDS)
        dead = [] if self.folder is None else remove_dead_drivers(self.folder)
        self._release_claims_of(dead, self._claimed_elsewhere)
        self._collect_outbox(dead)
        jobs = [without_finished_runs(job, self.store) for job in self._claimed_elsewhere]
        self._waiting.extend(job for job in jobs if job is not None)
        self._claimed_elsewhere = []

    def _observe_other_drivers(self, *, last: bool = False) -> None:
        if self._view is None:
            return
        try:
            self._view.observe(self.store, last=last)
        except Exception:  # as for loggers: a view does not stop a sweep
            logger.exception("the view shows the runs of other drivers no more")
            self._view = None

    def _renew_claims(self) -> None:
        self._renewal.renew_if_due(self.store)
        while self._renewal.lost:
            lost = self._renewal.lost.pop()
            for job in list(self._running.values()):
                if lost in names_to_claim(job) and not self._claims.holds(lost):
                    self._give_up(job)

    def _give_up(self, job: Job) -> None:
        """Another driver has a claim of this job. Cancel the job, unless runs remain that only this driver has."""
        if job.id in self._given_up:
            return
        remaining = without_finished_runs(job, self.store)
        if remaining is not None and self._holds_all(remaining):
            self._renewal.hold(job.id, names_to_claim(remaining))
            logger.warning("job %s: another driver has finished some of its runs; the others continue", job.id)
            return
        reason = "finished its runs" if remaining is None else "taken over its runs"
        logger.warning("job %s is cancelled: another driver has %s", job.id, reason)
        self._given_up.add(job.id)
        self.executor.cancel(job.id)

    def _holds_all(self, job: Job) -> bool:
        return all(map(self._claims.holds, names_to_claim(job)))

    # ------------------------------------------------------------------ events

    def _handle(self, event: Progress | RunResult | JobEnded) -> None:
        if isinstance(event, Progress):
            self._loggers.call("progress", event)
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
        self._loggers.call("finished", stored)

    def _end_job(self, ended: JobEnded) -> None:
        job = self._running.pop(ended.job)
        self._renewal.drop(job.id)
        is_given_up = job.id in self._given_up
        self._given_up.discard(job.id)
        remaining = without_finished_runs(job, self.store)
        if remaining is not None and (is_given_up or not self._holds_all(remaining)):
            # Another driver trains these runs, or will give their claims back.
            self._claimed_elsewhere.append(remaining)
        elif remaining is not None:
            self._fail(remaining, ended.error or "")
        if self.folder is not None:
            leave_checkpoints(job, self._finished, self.folder)
        self._claims.release(names_to_claim(job))

    def _fail(self, job: Job, reason: str) -> None:
        """Store a failed result for each run of a job that lost its worker. Retry a run once."""
        error = lost_worker(reason)
        for run in job.runs:
            attempt = job.attempts.get(run.id, 1)
            self._store_result(RunResult(run=run, status="failed", attempt=attempt, error=error))
        runs = {run.id for run in job.runs}
        if self._retry_failed:
            self._waiting.extend(retried_jobs(self.plan, self.store, runs - self._lost))
        self._lost |= runs
