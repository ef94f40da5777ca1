"""What a Slurm job does: it hosts a worker process, and keeps what comes of it on disk."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core import Job, RunResult
from flops_fit_core.plugins import Outbox
from flops_fit_executors.messages import Kind, read_record
from flops_fit_executors.slurm_commands import state_of_this_job
from flops_fit_executors.slurm_files import SlurmFiles, State
from flops_fit_executors.worker_process import Inbox, WorkerProcess, environment

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

TERM_SECONDS = 20.0
"""For a checkpoint after SIGTERM. Slurm's own KillWait, after which it kills, is 30 by default."""
SAY_SECONDS = 1.0
"""Between two words of progress, and two looks at the ticket."""
SEEN_SECONDS = 30.0
"""For files that a driver wrote to be seen on a node."""
BY_SIGTERM = "stopped by SIGTERM"
"""What a worker says that got SIGTERM, which Slurm sends to every process of a job."""


@dataclass(frozen=True)
class SlurmJob:
    """Called by submitit in a Slurm job, under submitit's handler of the signal that a time limit is near.

    All it needs is in here and in the study's folder. When it is called again after a requeue, it leaves out the
    runs that have results, and the trainer finds its checkpoints.
    """

    study: str
    job: str
    """JSON."""
    ticket: str
    plugins: str
    path: str
    """PYTHONPATH under which a worker imports what the driver does."""
    gpus: bool
    threads: int
    grace: float
    """Seconds from submitit's signal to the time limit."""

    def __call__(self) -> None:
        Host(self).run()

    def checkpoint(self) -> DelayedSubmission | None:
        """What submitit calls before it requeues the job; None where nothing is left to do."""
        from submitit.helpers import DelayedSubmission

        if Host.here is not None and not Host.here.stop(max(self.grace / 2, self.grace - 20.0)):
            return None
        return DelayedSubmission(replace(self))


class Host:
    """Runs one worker process for one job.

    Signals reach the main thread, which only waits: it holds no lock that the other thread, which does the work,
    could need.
    """

    here: Host | None = None
    """The one of this process, for the signal handler."""

    def __init__(self, about: SlurmJob) -> None:
        self._about = about
        self._notes = Notes(Path(about.study), Job.model_validate_json(about.job), about.ticket)
        self._stopping = False
        self._deadline = float("inf")
        self._over = False
        """Whether the worker is gone."""
        self._ended = False
        """Whether the worker came to the job's end, however that was."""
        self._reason: str | None = None

    # ------------------------------------------------------------------ the main thread

    def run(self) -> None:
        Host.here = self
        signal.signal(signal.SIGTERM, self._terminate)
        if not self._notes.wait_for_ticket():
            return
        left = self._notes.left()
        if left is None:
            self._notes.end(None)
            return
        try:
            self._start(left)
            self._wait()
            self._conclude()
        except Exception as error:
            # Also submitit's, out of its signal handler: the job has been requeued too often.
            if not self._notes.state.ended:
                self._notes.end(f"{type(error).__name__}: {error}")
            raise

    def stop(self, seconds: float) -> bool:
        """Let the trainer write a checkpoint and end. Gives whether something is left. Takes no lock."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        self._stopping = True
        self._wait()
        return self._was_stopped()

    def _terminate(self, number: int, frame: Any) -> None:
        self._deadline = min(self._deadline, time.monotonic() + TERM_SECONDS)
        self._stopping = True

    def _wait(self) -> None:
        while not self._over:
            time.sleep(0.05)

    def _was_stopped(self) -> bool:
        """Rather than having come to its end."""
        return self._stopping and self._reason is None and self._notes.left() is not None

    def _conclude(self) -> None:
        if not self._was_stopped():
            self._notes.end(self._reason)
        elif self._notes.has_ticket() and state_of_this_job() == "RUNNING":
            # Nobody has cancelled or requeued it, so a preemption begins or the node goes down: as at a time
            # limit, submitit puts the job back into the queue.
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(1.0)

    # ------------------------------------------------------------------ the worker

    def _start(self, left: Job) -> None:
        about = self._about
        greeting = {
            Kind.SETUP: json.dumps({"plugins": about.plugins, "folder": about.study}).encode(),
            Kind.OBJECTS: b"",
        }
        hidden = {} if about.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        env = environment([hidden], about.threads) | {"PYTHONPATH": about.path}
        inbox: Inbox = queue.SimpleQueue()
        # Slurm signals every process of a job. The worker is told by its host, and would die of this signal.
        with blocked(signal.SIGUSR2):
            worker = WorkerProcess((0,), greeting, inbox, env=env, log=self._notes.log)
            threading.Thread(target=self._converse, args=(worker, inbox, left), daemon=True).start()

    def _converse(self, worker: WorkerProcess, inbox: Inbox, left: Job) -> None:
        try:
            for kind, payload in self._heard(worker, inbox):
                if kind is Kind.READY:
                    worker.ready = True
                    worker.tell(Kind.JOB, left.model_dump_json().encode())
                elif kind is Kind.ENDED:
                    self._end(payload.decode())
                    worker.tell(Kind.STOP)
                else:
                    self._notes.take(read_record(kind, payload))
            if not self._ended and not self._stopping:
                self._reason = worker.fate()
        except Exception as error:
            self._reason = f"{type(error).__name__}: {error}"
        finally:
            worker.end(force=True)
            self._over = True

    def _end(self, reason: str) -> None:
        self._ended = True
        if reason == BY_SIGTERM:
            self._stopping = True
        else:
            self._reason = reason or None

    def _heard(self, worker: WorkerProcess, inbox: Inbox) -> Iterator[tuple[Kind, bytes]]:
        """What the worker says, until it is gone; meanwhile tells it to stop when that is due."""
        told = False
        while True:
            if self._stopping and not told:
                told = True
                if not (worker.ready and worker.tell(Kind.STOP)):
                    worker.end(force=True)
            if time.monotonic() > self._deadline:
                worker.end(force=True)
            if not self._stopping and not self._notes.keep_up():
                self._deadline, self._stopping = time.monotonic() + TERM_SECONDS, True
            try:
                _, kind, payload = inbox.get(timeout=0.2)
            except queue.Empty:
                continue
            if kind is Kind.GONE:
                return
            yield kind, payload


class Notes:
    """What a Slurm job keeps on disk of how far it is."""

    def __init__(self, study: Path, job: Job, ticket: str) -> None:
        self._job = job
        self._ticket = ticket
        self._files = SlurmFiles(study)
        self._outbox = Outbox(study)
        self.log = self._files.logs / f"{job.id}.log"
        self.state = self._files.state(job.id, ticket) or State(ticket=ticket)
        self._said = 0.0
        self._had_ticket = time.monotonic()

    def has_ticket(self) -> bool:
        """Whether the driver has given the job to no other Slurm job, and has not taken it back."""
        submission = self._files.submission(self._job.id)
        return submission is not None and submission.ticket == self._ticket

    def wait_for_ticket(self) -> bool:
        until = time.monotonic() + SEEN_SECONDS
        while not self.has_ticket():
            if time.monotonic() > until:
                return False
            time.sleep(1.0)
        return True

    def left(self) -> Job | None:
        """The job without the runs that have results; None where nothing is left."""
        return self._job.only(lambda run: not self._is_done(run.id))

    def _is_done(self, run_id: str) -> bool:
        """A driver takes results out of the outbox, so that what was put there is written down, too."""
        if run_id not in self.state.done:
            result = self._outbox.get(run_id)
            if result is None or result.attempt < self._job.attempts.get(run_id, 1):
                return False
            self.state.done.append(run_id)
        return True

    def take(self, record: Any) -> None:
        """Keep a result; of progress, the latest."""
        if isinstance(record, RunResult):
            self._outbox.put(record)
            self.state.done.append(record.id)
            self._say()
        else:
            self.state.progress[record.run] = record

    def keep_up(self) -> bool:
        """Now and then, write the latest progress down. False where the job may not go on."""
        if time.monotonic() - self._said < SAY_SECONDS:
            return True
        self._say()
        return time.monotonic() - self._had_ticket < SEEN_SECONDS / 3

    def end(self, reason: str | None) -> None:
        """Nothing more will come; ``reason`` where that is not because all was trained."""
        self.state.ended, self.state.reason = True, reason
        self._say()

    def _say(self) -> None:
        """Where another Slurm job has the ticket, the file is that one's."""
        self._said = time.monotonic()
        if self.has_ticket():
            self._had_ticket = self._said
            self._files.say(self._job.id, self.state)


@contextmanager
def blocked(number: int) -> Iterator[None]:
    """Processes that are started meanwhile never get this signal; this one gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
