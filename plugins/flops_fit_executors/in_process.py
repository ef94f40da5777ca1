"""Run jobs in the driver's process, one after another."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flops_fit_core import Job, Progress, RunResult
from flops_fit_core.plugins import Executor, ExecutorContext, JobEnded
from flops_fit_executors.open_jobs import CLOSED, Event, OpenJobs

GRACE = 5.0
"""Seconds that the running job has to write its checkpoint when the executor is closed."""
LATE_SECONDS = 60.0
"""Seconds after the trainer's stated timeout, and its grace period, within which a run must have ended."""


class InProcessExecutor(Executor):
    """Trains while events are read. :meth:`events` ignores its timeout and waits for the job's next event.

    Jobs are not isolated: code that kills this process ends the sweep. The next ``flops-fit run`` resumes it.
    """

    def __init__(self, context: ExecutorContext, threads: int) -> None:
        self._context = context
        self._threads = threads
        self._waiting: deque[Job] = deque()
        self._running: tuple[str, Iterator[Progress | RunResult]] | None = None
        self._timeout = float("inf")
        self._jobs = OpenJobs()
        self._deadline = float("inf")
        """On time.monotonic: when the running job must have given its next event."""

    def submit(self, job: Job) -> None:
        """Raises ValueError if the job is submitted already and has not ended, RuntimeError if the executor is
        closed."""
        self._jobs.open(job)
        self._waiting.append(job)

    def events(self, timeout: float) -> Iterator[Event]:
        return self._jobs.events(timeout, self._listen)

    def cancel(self, job_id: str) -> None:
        for job in [job for job in self._waiting if job.id == job_id]:
            self._waiting.remove(job)
            self._jobs.add(JobEnded(job_id, "cancelled"))
        if self._running is not None and self._running[0] == job_id:
            self._end("cancelled")

    def is_alive(self, job_id: str) -> bool:
        """False once a run has taken longer than the timeout that its trainer states: the call hangs. True without
        a timeout. May be called by another thread."""
        running = self._running
        return running is None or running[0] != job_id or time.monotonic() < self._deadline

    def close(self) -> None:
        """Let the running job write its checkpoint, then end it and the waiting jobs with an error."""
        self._jobs.closed = True
        deadline = time.monotonic() + GRACE
        while self._running is not None and time.monotonic() < deadline:
            self._advance()
        self._end(CLOSED)
        while self._waiting:
            self._jobs.add(JobEnded(self._waiting.popleft().id, CLOSED))

    def _listen(self, seconds: float) -> bool:
        self._advance()
        return True

    def _advance(self) -> None:
        """Train the running job, or the next, until its next event."""
        if self._running is None:
            job = self._waiting.popleft()
            self._running = job.id, self._context.task(job)(lambda: self._jobs.closed)
            self._timeout = seconds_per_run(job)
        self._deadline = time.monotonic() + self._timeout
        try:
            with torch_threads(self._threads):
                self._jobs.add(next(self._running[1]))
        except StopIteration:
            self._end(None)
        except BaseException as error:
            self._end(f"{type(error).__name__}: {error}")
            if not isinstance(error, Exception | SystemExit):
                raise

    def _end(self, error: str | None) -> None:
        if self._running is not None:
            job, records = self._running
            self._running = None
            with suppress(Exception):
                records.close()  # type: ignore[attr-defined]
            self._jobs.add(JobEnded(job, error))


def seconds_per_run(job: Job) -> float:
    """Seconds until the trainer must have ended a run, by its options ``timeout_minutes`` and ``grace_period``.
    Infinite without a timeout."""
    options = job.runtime.get("trainer", {})
    minutes, grace_period = options.get("timeout_minutes"), options.get("grace_period")
    if not isinstance(minutes, int | float):
        return float("inf")
    return 60 * minutes + (grace_period if isinstance(grace_period, int | float) else 0.0) + LATE_SECONDS


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Set torch's number of threads, and restore it afterwards."""
    import torch

    previous = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
