"""Jobs in the queue of a Slurm cluster, as the driver sees them."""

from __future__ import annotations

import logging
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from flops_fit_core import ConfigError, Job, Progress, RunResult
from flops_fit_core.plugins import ExecutorContext, JobEnded, Outbox
from flops_fit_executors.open_jobs import CLOSED, Event, OpenJobs
from flops_fit_executors.slurm_commands import ALIVE, Refused, Slurm
from flops_fit_executors.slurm_files import SlurmFiles, Submission
from flops_fit_executors.slurm_job import SlurmJob
from flops_fit_executors.slurm_left_behind import LeftBehind
from flops_fit_executors.slurm_options import SlurmOptions
from flops_fit_executors.worker_process import environment

SETTLE = 10.0
"""Seconds that files may need to be seen from here, once a job has left the queue."""
CLOSE = 40.0
"""Seconds to wait for cancelled jobs: they write checkpoints, and Slurm's KillWait is 30 by default."""
RETRY = 30.0
"""Seconds until sbatch is tried again after it refused."""
QUEUE_EVERY = 5
"""Looks at the files for one at the queue."""

logger = logging.getLogger("flops_fit")


@dataclass
class InQueue:
    """A job that Slurm has."""

    job: Job
    ticket: str
    slurm: str
    missing: set[str]
    """Ids of the runs whose results have not come."""
    progress: dict[str, Progress] = field(default_factory=dict)
    gone_since: float | None = None
    """When it was first seen to have left the queue, or to have ended without all that it said was done."""
    dismissed: str | None = None
    """Why the driver wants it to end."""


class SlurmQueue:
    """Collects jobs, and submits them as arrays when events are read.

    A Slurm job writes its results into the study's outbox, and goes on when this process is gone. Another one with
    the same study finds it: what is submitted then and already in the queue is not submitted again.

    Raises ConfigError for Python objects, which cannot reach a queued job, and where there is no Slurm.
    """

    def __init__(self, context: ExecutorContext, options: SlurmOptions) -> None:
        if context.live:
            raise ConfigError(
                "executor 'slurm': a queued job finds only what is on disk, and these plugins are Python objects: "
                f"{', '.join(sorted(context.live))}. Write a plugin module (docs/write-a-plugin.md) and name it "
                'with -p MODULE, or train on this machine with executor = "processes"'
            )
        self.capacity = options.max_jobs
        self._context = context
        self._options = options
        self._study = context.folder.absolute()
        self._files = SlurmFiles(self._study)
        self._outbox = Outbox(self._study)
        self._slurm = Slurm(self._study, self._files.logs, options)
        self._collected: deque[Job] = deque()
        self._in_queue: dict[str, InQueue] = {}
        self._left_behind = LeftBehind(self._files, self._slurm)
        self._jobs = OpenJobs()
        self._looks = 0
        self._next_look = 0.0
        self._next_try = 0.0
        self._has_gpus: bool | None = None

    # ------------------------------------------------------------------ the contract

    def submit(self, job: Job) -> None:
        """Raises ValueError for a job that has been submitted and has not ended, RuntimeError once closed, and
        ConfigError where Slurm does not say whether an earlier driver's jobs live."""
        self._jobs.take(job)
        if not self._is_done(job) and not self._attach(job):
            self._collected.append(job)

    def events(self, timeout: float) -> Iterator[Event]:
        return self._jobs.events(timeout, self._listen)

    def cancel(self, job_id: str) -> None:
        for job in [job for job in self._collected if job.id == job_id]:
            self._collected.remove(job)
            self._jobs.say(JobEnded(job.id, "cancelled"))
        if job_id in self._in_queue:
            one = self._in_queue[job_id]
            one.dismissed = "cancelled"
            self._slurm.cancel([one.slurm])
            self._looks = 0

    def close(self) -> None:
        """Cancel all jobs, which write their checkpoints, and wait until they have left the queue; with
        ``keep_jobs``, leave them to the next driver. What has not ended ends with a reason."""
        if self._jobs.closed:
            return
        self._jobs.closed = True
        self._collected.clear()
        if self._in_queue and not self._options.keep_jobs:
            self._cancel_all()
        for one in list(self._in_queue.values()):
            self._read(one)
        self._jobs.end_all("left in the queue" if self._options.keep_jobs else CLOSED)
        self._in_queue.clear()

    def _cancel_all(self) -> None:
        for one in self._in_queue.values():
            one.dismissed = CLOSED
        self._slurm.cancel([one.slurm for one in self._in_queue.values()])
        until = time.monotonic() + CLOSE
        while self._in_queue and time.monotonic() < until:
            time.sleep(0.3)
            self._looks = 0
            self._look()
        if self._in_queue:
            left = ", ".join(one.slurm for one in self._in_queue.values())
            logger.warning("Slurm jobs %s were cancelled and have not left the queue yet", left)

    def _listen(self, seconds: float) -> bool:
        self._submit_collected()
        now = time.monotonic()
        if now < self._next_look:
            if not seconds:
                return False
            time.sleep(min(self._next_look - now, seconds))
        else:
            self._look()
        return True

    # ------------------------------------------------------------------ what an earlier driver left behind

    def _is_done(self, job: Job) -> bool:
        """Whether all results are in the outbox already, put there while nobody could take them."""
        found = [self._result(job, run.id) for run in job.runs]
        there = [result for result in found if result is not None]
        if len(there) < len(found):
            return False
        self._jobs.say(*there, JobEnded(job.id))
        self._files.forget(job.id)
        return True

    def _attach(self, job: Job) -> bool:
        """Whether a job that is in the queue already trains this one."""
        one = self._left_behind.taken_over(job)
        if one is None or one.slurm is None:
            return False
        self._in_queue[job.id] = InQueue(job, one.ticket, one.slurm, {run.id for run in job.runs})
        return True

    # ------------------------------------------------------------------ into the queue

    def _submit_collected(self) -> None:
        if not self._collected or self._jobs.closed or time.monotonic() < self._next_try:
            return
        by_devices: dict[int, list[Job]] = defaultdict(list)
        for job in self._collected:
            by_devices[job.devices].append(job)
        for devices, jobs in by_devices.items():
            for first in range(0, len(jobs), self.capacity):
                if not self._submit_array(devices, jobs[first : first + self.capacity]):
                    return

    def _submit_array(self, devices: int, jobs: Sequence[Job]) -> bool:
        submissions = [Submission(ticket=uuid.uuid4().hex, job=job) for job in jobs]
        gpus = self._gpus(jobs[0])
        # Written before sbatch, so that a job finds its ticket however soon it starts.
        for one in submissions:
            self._files.submit(one)
        try:
            calls = [self._call(one, devices, gpus) for one in submissions]
            ids = self._slurm.submit(calls, devices, gpus)
        except Refused as error:
            for one in submissions:
                self._files.forget(one.job.id)
            self._was_refused(str(error))
            return False
        for one, slurm in zip(submissions, ids, strict=True):
            self._files.submit(one.model_copy(update={"slurm": slurm}))
            self._collected.remove(one.job)
            self._in_queue[one.job.id] = InQueue(one.job, one.ticket, slurm, {run.id for run in one.job.runs})
        return True

    def _call(self, submission: Submission, devices: int, gpus: int) -> SlurmJob:
        return SlurmJob(
            study=str(self._study),
            job=submission.job.model_dump_json(),
            ticket=submission.ticket,
            plugins=self._context.plugins,
            path=environment([], 1)["PYTHONPATH"],
            gpus=gpus > 0,
            threads=self._options.cpus,
            grace=self._options.grace,
        )

    def _gpus(self, job: Job) -> int:
        """For each of the job's devices."""
        if self._options.gpus is not None:
            return self._options.gpus
        device = job.device.name.rpartition("/")[2]
        if device in ("cpu", "cuda"):
            return int(device == "cuda")
        if self._has_gpus is None:
            self._has_gpus = self._slurm.has_gpus()
        return int(self._has_gpus)

    def _was_refused(self, said: str) -> None:
        """Raises ConfigError where nothing of ours is in the queue, so that waiting for room does not help."""
        if not self._in_queue:
            raise ConfigError(f"executor 'slurm': sbatch did not take the jobs; change [executor]:\n{said}")
        logger.warning("sbatch did not take %d jobs, tried again later: %s", len(self._collected), said)
        self._next_try = time.monotonic() + RETRY

    # ------------------------------------------------------------------ what comes back

    def _look(self) -> None:
        self._next_look = time.monotonic() + self._options.poll
        for one in list(self._in_queue.values()):
            self._read(one)
        ask = self._looks % QUEUE_EVERY == 0
        self._looks += 1
        if ask and self._in_queue and (states := self._slurm.queue()) is not None:
            for one in list(self._in_queue.values()):
                self._judge(one, states.get(one.slurm))

    def _read(self, one: InQueue) -> None:
        """What its job has written."""
        state = self._files.state(one.job.id, one.ticket)
        if state is None:
            return
        self._deliver(one, [run for run in state.done if run in one.missing])
        for run, progress in state.progress.items():
            if run in one.missing and one.progress.get(run) != progress:
                one.progress[run] = progress
                self._jobs.say(progress)
        if state.ended and (one.missing.isdisjoint(state.done) or self._has_settled(one)):
            self._end(one, one.dismissed or state.reason)

    def _judge(self, one: InQueue, state: str | None) -> None:
        """What the queue says of a job that has not said that it ended."""
        if state in ALIVE:
            one.gone_since = None
        elif one.dismissed or self._has_settled(one):
            self._read(one)
            if one.job.id in self._in_queue:
                self._deliver(one, [run.id for run in one.job.runs if run.id in one.missing])
                self._end(one, one.dismissed or self._fate(one, state))

    def _has_settled(self, one: InQueue) -> bool:
        one.gone_since = one.gone_since or time.monotonic()
        return time.monotonic() - one.gone_since > SETTLE

    def _fate(self, one: InQueue, state: str | None) -> str | None:
        if not one.missing:
            return None
        how = f"is {state}" if state else "has left the queue"
        return f"Slurm job {one.slurm} {how}: {self._files.last_words(one.slurm)}"

    def _deliver(self, one: InQueue, runs: Sequence[str]) -> None:
        for run in runs:
            if (result := self._result(one.job, run)) is not None:
                one.missing.discard(run)
                self._jobs.say(result)

    def _result(self, job: Job, run: str) -> RunResult | None:
        result = self._outbox.get(run)
        return result if result is not None and result.attempt >= job.attempts.get(run, 1) else None

    def _end(self, one: InQueue, reason: str | None) -> None:
        del self._in_queue[one.job.id]
        self._files.forget(one.job.id)
        self._jobs.say(JobEnded(one.job.id, reason))
