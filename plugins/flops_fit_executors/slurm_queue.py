"""Jobs in the queue of a Slurm cluster, as the driver sees them."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flops_fit_core import ConfigError, Job
from flops_fit_core.plugins import (
    Executor,
    ExecutorContext,
    JobEnded,
    QueuedJob,
    QueuedJobReader,
    QueuedJobs,
    read_log_tail,
)
from flops_fit_executors.open_jobs import CLOSED, Event, OpenJobs
from flops_fit_executors.slurm_commands import ALIVE, Refused, Slurm
from flops_fit_executors.slurm_job import SlurmJob
from flops_fit_executors.slurm_left_behind import LeftBehind
from flops_fit_executors.slurm_options import SlurmOptions
from flops_fit_executors.worker_process import TAIL

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

    slurm: str
    """Slurm's id, such as ``1234_5``."""
    reader: QueuedJobReader
    gone_since: float | None = None
    """When it was first seen to have left the queue, or to have ended without all that it said was done."""
    dismissed: str | None = None
    """Why the driver wants it to end."""

    @property
    def job(self) -> Job:
        return self.reader.job


class SlurmQueue(Executor):
    """Collects jobs, and submits them as arrays when events are read.

    A Slurm job writes its results into the study's outbox, and goes on when this process is gone. Another one with
    the same study finds it: what is submitted then and already in the queue is not submitted again.

    Raises ConfigError for Python objects, which cannot reach a queued job, and where there is no Slurm.
    """

    def __init__(self, context: ExecutorContext, options: SlurmOptions) -> None:
        context.require_importable_plugins()
        self.capacity = options.max_jobs
        self._context = context
        self._options = options
        self._study = context.folder.absolute()
        self._logs = self._study / "slurm" / "logs"
        self._queued_jobs = QueuedJobs(self._study)
        self._slurm = Slurm(self._study, self._logs, options)
        self._collected: deque[Job] = deque()
        self._in_queue: dict[str, InQueue] = {}
        self._left_behind = LeftBehind(self._queued_jobs, self._slurm)
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
            self._jobs.add(JobEnded(job.id, "cancelled"))
        if job_id in self._in_queue:
            one = self._in_queue[job_id]
            one.dismissed = "cancelled"
            self._slurm.cancel([one.slurm])
            self._looks = 0

    def close(self) -> None:
        """Cancel all jobs, which write their checkpoints, and wait until they have left the queue; with
        ``keep_jobs``, leave them to the next driver. What has not ended ends with an error."""
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
        found = [self._queued_jobs.result(job, run.id) for run in job.runs]
        there = [result for result in found if result is not None]
        if len(there) < len(found):
            return False
        self._jobs.add(*there, JobEnded(job.id))
        self._queued_jobs.remove(job.id)
        return True

    def _attach(self, job: Job) -> bool:
        """Whether a job that is in the queue already trains this one."""
        queued = self._left_behind.taken_over(job)
        if queued is None or queued.scheduler_id is None:
            return False
        self._in_queue[job.id] = InQueue(queued.scheduler_id, QueuedJobReader(self._queued_jobs, queued, job))
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
        gpus = self._gpus(jobs[0])
        calls = [self._call(job, gpus) for job in jobs]
        try:
            ids = self._slurm.submit(calls, devices, gpus)
        except Refused as error:
            for job in jobs:
                self._queued_jobs.remove(job.id)
            self._was_refused(str(error))
            return False
        for job, slurm in zip(jobs, ids, strict=True):
            queued = self._queued_jobs.set_scheduler_id(job.id, slurm)
            self._collected.remove(job)
            self._in_queue[job.id] = InQueue(slurm, QueuedJobReader(self._queued_jobs, queued))
        return True

    def _call(self, job: Job, gpus: int) -> SlurmJob:
        command = self._context.command(job)
        return SlurmJob(
            study=self._study,
            queued=self._queued(job),
            command=command,
            log=self._logs / f"{job.id}.log",
            gpus=gpus > 0,
            threads=self._options.cpus,
            grace_period=self._options.grace_period,
        )

    def _queued(self, job: Job) -> QueuedJob:
        queued = self._queued_jobs.get(job.id)
        assert queued is not None, "command() has written it"
        return queued

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
        """Take in the events that its job has written."""
        self._jobs.add(*one.reader.read())
        state = one.reader.state
        if state.ended and (one.reader.missing.isdisjoint(state.done) or self._has_settled(one)):
            self._end(one, one.dismissed or state.error)

    def _judge(self, one: InQueue, state: str | None) -> None:
        """What the queue says of a job that has not said that it ended."""
        if state in ALIVE:
            one.gone_since = None
        elif one.dismissed or self._has_settled(one):
            self._read(one)
            if one.job.id in self._in_queue:
                self._jobs.add(*one.reader.read_outbox())
                self._end(one, one.dismissed or self._fate(one, state))

    def _has_settled(self, one: InQueue) -> bool:
        one.gone_since = one.gone_since or time.monotonic()
        return time.monotonic() - one.gone_since > SETTLE

    def _fate(self, one: InQueue, state: str | None) -> str | None:
        if not one.reader.missing:
            return None
        how = f"is {state}" if state else "has left the queue"
        return f"Slurm job {one.slurm} {how}: {end_of_log(self._logs / f'{one.slurm}_0_log.err')}"

    def _end(self, one: InQueue, error: str | None) -> None:
        del self._in_queue[one.job.id]
        self._queued_jobs.remove(one.job.id)
        self._jobs.add(JobEnded(one.job.id, error))


def end_of_log(log: Path) -> str:
    """The end of what Slurm kept of a job's standard error, or that there is none."""
    if not log.exists():
        return f"there is no {log}: does the node see the study's folder?"
    return read_log_tail(log, TAIL).strip() or f"nothing in {log}"
