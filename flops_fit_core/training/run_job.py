"""Trains one queued job: ``python -m flops_fit_core.training.run_job FOLDER JOB_ID TICKET``.

This is the command of ``ExecutorContext.command``. It reads the job from the study's folder and writes its results
to the outbox and its progress to the job's state file. It stops when the driver takes the job back.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from flops_fit_core.plugins.outbox import Outbox
from flops_fit_core.plugins.queued_jobs import JobState, QueuedJob, QueuedJobs
from flops_fit_core.records import Job, Progress, RunResult
from flops_fit_core.training.executor_context import Runner

logger = logging.getLogger("flops_fit")

STOPPED = 75
"""Exit status of a job that was stopped and can continue (EX_TEMPFAIL of sysexits.h)."""
WRITE_SECONDS = 1.0
"""Between two writes of progress, and between two looks at the ticket."""
SEEN_SECONDS = 30.0
"""Within which a file that the driver wrote is visible on this machine (NFS caches directories)."""
STOP_SECONDS = 20.0
"""For the checkpoint of a job that the driver has taken back."""


class RunningJob:
    """One job in this process, and its state file.

    A thread writes progress and looks at the ticket, so that both happen during a long step as well.
    """

    def __init__(self, folder: Path, queued: QueuedJob) -> None:
        self.should_stop = False
        """A plain attribute: a signal handler sets it, which must not wait for a lock."""
        self._folder = folder
        self._queued = queued
        self._jobs = QueuedJobs(folder)
        self._outbox = Outbox(folder)
        self._lock = threading.Lock()
        self._state = self._read_state()
        self._changed = False

    def run(self) -> int:
        """Train the runs that have no result. Returns the exit status of this process."""
        job = self._remaining()
        if job is None:
            return self._end(None)
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            for event in Runner(self._queued.plugins, self._folder)(job, lambda: self.should_stop):
                self._add(event)
        except Exception as error:
            traceback.print_exc()
            self._end(f"{type(error).__name__}: {error}")
            return 1
        return STOPPED if self.should_stop and self._remaining() is not None else self._end(None)

    def _read_state(self) -> JobState:
        """A driver takes results out of the outbox: note those that are there now."""
        state = self._jobs.state(self._queued)
        job = self._queued.job
        state.done += [
            run.id for run in job.runs if run.id not in state.done and self._jobs.result(job, run.id) is not None
        ]
        return state

    def _remaining(self) -> Job | None:
        return self._queued.job.only(lambda run: run.id not in self._state.done)

    def _add(self, event: Progress | RunResult) -> None:
        with self._lock:
            if isinstance(event, RunResult):
                self._outbox.put(event, self._queued.job.claim_tokens.get(event.id))
                self._state.done.append(event.id)
                self._jobs.write_state(self._queued, self._state)
            else:
                self._state.progress[event.run] = event
                self._changed = True

    def _end(self, error: str | None) -> int:
        with self._lock:
            self._state.ended, self._state.error = True, error
            self._jobs.write_state(self._queued, self._state)
        return 0

    def _watch(self) -> None:
        last_current = time.monotonic()
        while True:
            time.sleep(WRITE_SECONDS)
            try:
                is_current = self._write_progress()
            except OSError as error:  # a full disk, which may have room again
                logger.warning("progress is not written: %s", error)
                is_current = True
            now = time.monotonic()
            if is_current:
                last_current = now
            elif now - last_current > SEEN_SECONDS / 3:
                self.should_stop = True
                time.sleep(STOP_SECONDS)
                os._exit(STOPPED)

    def _write_progress(self) -> bool:
        """Returns whether the driver still wants this process to train the job."""
        with self._lock:
            if not self._changed:
                return self._jobs.is_current(self._queued)
            self._changed = False
            return self._jobs.write_state(self._queued, self._state)


def wait_for_ticket(jobs: QueuedJobs, job_id: str, ticket: str) -> QueuedJob | None:
    """The job; None if the driver has taken it back."""
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        queued = jobs.get(job_id)
        if queued is not None and queued.ticket == ticket:
            return queued
        if time.monotonic() > deadline:
            return None
        time.sleep(1.0)


def main() -> None:
    """Train the job and exit with its status."""
    faulthandler.enable()
    folder, job_id, ticket = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    queued = wait_for_ticket(QueuedJobs(folder), job_id, ticket)
    if queued is None:
        logger.warning("job %s is not trained: the driver has submitted it again, or taken it back", job_id)
        sys.exit(0)
    job = RunningJob(folder, queued)

    def stop(number: int, frame: Any) -> None:
        job.should_stop = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    status = job.run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Destroying torch's objects takes a second, and threads of user code may never end.


if __name__ == "__main__":
    main()
