"""The driver's side of the jobs in a Slurm queue."""

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
    QueuedJobReader,
    QueuedJobs,
    read_log_tail,
)
from flops_fit_executors.open_jobs import CLOSED, Event, OpenJobs
from flops_fit_executors.slurm_commands import ALIVE, Slurm, SubmissionError
from flops_fit_executors.slurm_job import SlurmJob
from flops_fit_executors.slurm_options import SlurmOptions
from flops_fit_executors.slurm_previous_jobs import PreviousJobs
from flops_fit_executors.slurm_script import gpus_per_device
from flops_fit_executors.slurm_start import private_folder
from flops_fit_executors.worker_process import TAIL

FILE_DELAY = 10.0
"""Seconds that a network file system may take to show the files of a job that has left the queue."""
CLOSE_TIMEOUT = 40.0
"""Seconds to wait for cancelled jobs: they write checkpoints, and Slurm's KillWait is 30 by default."""
RETRY_DELAY = 30.0
"""Seconds until a rejected submission is retried."""
POLLS_PER_SQUEUE = 5
"""Polls of the jobs' files per call of squeue."""
TAKEN_OVER = "another driver has taken the job over"

logger = logging.getLogger("flops_fit")


@dataclass
class InQueue:
    """A job in Slurm's queue."""

    slurm_id: str
    """Slurm's id, such as ``1234_5``."""
    reader: QueuedJobReader
    gone_since: float | None = None
    """Monotonic time since when the job has been out of the queue, or ended with results that are not visible yet.
    None otherwise."""
    dismissed: str | None = None
    """Why the driver has cancelled it; None otherwise."""

    @property
    def job(self) -> Job:
        return self.reader.job


class SlurmQueue(Executor):
    """Collects jobs, and submits them as arrays when events are read.

    A Slurm job writes its results into the study's outbox and continues if this process exits. The next driver of
    the study takes it over instead of submitting its job again.

    Raises ConfigError if the study has Python objects, which cannot be sent to a queued job, and if this machine
    has no Slurm.
    """

    def __init__(self, context: ExecutorContext, options: SlurmOptions) -> None:
        context.require_importable_plugins()
        self.capacity = options.max_jobs
        self._context = context
        self._options = options
        self._study = context.folder.absolute()
        self._logs = private_folder(self._study / "slurm")
        self._queued_jobs = QueuedJobs(self._study)
        self._slurm = Slurm(self._study, self._logs, options)
        self._collected: deque[Job] = deque()
        self._in_queue: dict[str, InQueue] = {}
        self._previous_jobs = PreviousJobs(self._queued_jobs, self._slurm)
        self._jobs = OpenJobs()
        self._polls = 0
        self._next_poll = 0.0
        self._next_submit = 0.0
        self._has_gpus: bool | None = None

    # ------------------------------------------------------------------ interface

    def submit(self, job: Job) -> None:
        """Raises ValueError if the job is submitted already and has not ended, RuntimeError if the executor is
        closed, and ConfigError if Slurm does not report whether jobs of an earlier driver are alive."""
        self._jobs.open(job)
        if not self._finish_from_outbox(job) and not self._take_over(job):
            self._collected.append(job)

    def events(self, timeout: float) -> Iterator[Event]:
        return self._jobs.events(timeout, self._listen)

    def cancel(self, job_id: str) -> None:
        for job in [job for job in self._collected if job.id == job_id]:
            self._collected.remove(job)
            self._jobs.add(JobEnded(job.id, "cancelled"))
        if job_id in self._in_queue:
            entry = self._in_queue[job_id]
            if not self._queued_jobs.is_owned(entry.reader.queued):
                # The Slurm job trains for the other driver now: it must not be cancelled.
                self._end(entry, TAKEN_OVER)
                return
            entry.dismissed = "cancelled"
            self._slurm.cancel([entry.slurm_id])
            self._polls = 0  # squeue runs at the next poll

    def is_alive(self, job_id: str) -> bool:
        """False once the job has written that it ended. Reads a file, and may be called by another thread."""
        entry = self._in_queue.get(job_id)
        return entry is None or not self._queued_jobs.state(entry.reader.queued).ended

    def close(self) -> None:
        """Cancel all jobs, which write their checkpoints, and wait until they have left the queue. With
        ``keep_jobs``, leave them to the next driver. Open jobs end with an error."""
        if self._jobs.closed:
            return
        self._jobs.closed = True
        self._collected.clear()
        if self._in_queue and not self._options.keep_jobs:
            self._cancel_all()
        for entry in list(self._in_queue.values()):
            self._read(entry)
        self._jobs.end_all("left in the queue" if self._options.keep_jobs else CLOSED)
        self._in_queue.clear()

    def _cancel_all(self) -> None:
        for entry in list(self._in_queue.values()):
            if not self._queued_jobs.is_owned(entry.reader.queued):
                self._end(entry, TAKEN_OVER)
        for entry in self._in_queue.values():
            entry.dismissed = CLOSED
        if self._in_queue:
            self._slurm.cancel([entry.slurm_id for entry in self._in_queue.values()])
        deadline = time.monotonic() + CLOSE_TIMEOUT
        while self._in_queue and time.monotonic() < deadline:
            time.sleep(0.3)
            self._polls = 0
            self._poll()
        if self._in_queue:
            remaining = ", ".join(entry.slurm_id for entry in self._in_queue.values())
            logger.warning("Slurm jobs %s were cancelled and have not left the queue yet", remaining)

    def _listen(self, seconds: float) -> bool:
        self._submit_collected()
        now = time.monotonic()
        if now < self._next_poll:
            if not seconds:
                return False
            time.sleep(min(self._next_poll - now, seconds))
        else:
            self._poll()
        return True

    # ------------------------------------------------------------------ jobs of an earlier driver

    def _finish_from_outbox(self, job: Job) -> bool:
        """End the job if all of its results are in the outbox: they were written while no driver ran."""
        results = [self._queued_jobs.result(job, run.id) for run in job.runs]
        available = [result for result in results if result is not None]
        if len(available) < len(results):
            return False
        self._jobs.add(*available, JobEnded(job.id))
        self._queued_jobs.remove(job.id)
        return True

    def _take_over(self, job: Job) -> bool:
        """Take over the Slurm job of an earlier driver that trains this job, if there is one."""
        queued = self._previous_jobs.take_over(job)
        if queued is None or queued.scheduler_id is None:
            return False
        slurm_id = queued.scheduler_id
        queued = self._queued_jobs.take_over(queued, job.claim_tokens)
        self._in_queue[job.id] = InQueue(slurm_id, QueuedJobReader(self._queued_jobs, queued, job))
        return True

    # ------------------------------------------------------------------ submission

    def _submit_collected(self) -> None:
        if not self._collected or self._jobs.closed or time.monotonic() < self._next_submit:
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
        calls = [self._create_call(job, gpus) for job in jobs]
        try:
            ids = self._slurm.submit(calls, devices, gpus)
        except SubmissionError as error:
            for job in jobs:
                self._queued_jobs.remove(job.id)
            self._schedule_retry(str(error))
            return False
        for job, slurm_id in zip(jobs, ids, strict=True):
            queued = self._queued_jobs.set_scheduler_id(job.id, slurm_id)
            self._collected.remove(job)
            self._in_queue[job.id] = InQueue(slurm_id, QueuedJobReader(self._queued_jobs, queued))
        return True

    def _create_call(self, job: Job, gpus: int) -> SlurmJob:
        command = self._context.command(job)
        queued = self._queued_jobs.get(job.id)
        assert queued is not None, "command() has written it"
        return SlurmJob(
            study=self._study,
            queued=queued,
            command=command,
            log=self._logs / f"{job.id}.log",
            gpus=gpus > 0,
            threads=self._options.cpus,
            grace_period=self._options.grace_period,
        )

    def _gpus(self, job: Job) -> int:
        """GPUs per device of the job."""
        if (gpus := gpus_per_device(self._options, job)) is not None:
            return gpus
        if self._has_gpus is None:
            self._has_gpus = self._slurm.has_gpus()
        return int(self._has_gpus)

    def _schedule_retry(self, message: str) -> None:
        """Retry a rejected submission later. Raises ConfigError if none of the study's jobs is in the queue: then
        the limit on the number of jobs is not the reason."""
        if not self._in_queue:
            raise ConfigError(f"executor 'slurm': sbatch rejected the jobs; change [executor]:\n{message}")
        logger.warning("sbatch rejected %d jobs, will retry: %s", len(self._collected), message)
        self._next_submit = time.monotonic() + RETRY_DELAY

    # ------------------------------------------------------------------ events

    def _poll(self) -> None:
        """Read the files of all jobs, and from time to time the queue."""
        self._next_poll = time.monotonic() + self._options.poll
        for entry in list(self._in_queue.values()):
            self._read(entry)
        reads_queue = self._polls % POLLS_PER_SQUEUE == 0
        self._polls += 1
        if reads_queue and self._in_queue and (states := self._slurm.queue()) is not None:
            for entry in list(self._in_queue.values()):
                self._check_state(entry, states.get(entry.slurm_id))

    def _read(self, entry: InQueue) -> None:
        """Add the events that the job has written. End it once it has ended and all results are visible."""
        self._jobs.add(*entry.reader.read())
        state = entry.reader.state
        if state.ended and (entry.reader.missing.isdisjoint(state.done) or self._waited_for_files(entry)):
            self._end(entry, entry.dismissed or state.error)

    def _check_state(self, entry: InQueue, state: str | None) -> None:
        """End a job that has left the queue without writing that it ended."""
        if state in ALIVE:
            entry.gone_since = None
        elif entry.dismissed or self._waited_for_files(entry):
            self._read(entry)
            if entry.job.id in self._in_queue:
                self._jobs.add(*entry.reader.read_outbox())
                self._end(entry, entry.dismissed or self._describe_loss(entry, state))

    def _waited_for_files(self, entry: InQueue) -> bool:
        entry.gone_since = entry.gone_since or time.monotonic()
        return time.monotonic() - entry.gone_since > FILE_DELAY

    def _describe_loss(self, entry: InQueue, state: str | None) -> str | None:
        if not entry.reader.missing:
            return None
        status = f"is {state}" if state else "has left the queue"
        return f"Slurm job {entry.slurm_id} {status}: {read_stderr(self._logs / f'{entry.slurm_id}_0_log.err')}"

    def _end(self, entry: InQueue, error: str | None) -> None:
        del self._in_queue[entry.job.id]
        if self._queued_jobs.is_owned(entry.reader.queued):
            self._queued_jobs.remove(entry.job.id)
        self._jobs.add(JobEnded(entry.job.id, error))


def read_stderr(log: Path) -> str:
    """The end of the standard error of a Slurm job, or a sentence if the file is missing or empty."""
    if not log.exists():
        return f"{log} does not exist: is the study's folder on a file system that the node shares?"
    return read_log_tail(log, TAIL).strip() or f"{log} is empty"
