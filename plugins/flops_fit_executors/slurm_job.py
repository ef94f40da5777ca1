"""The program of a Slurm job: run the command that trains the job, and pass Slurm's signals to it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core.plugins import QueuedJob, QueuedJobs, open_log
from flops_fit_executors.slurm_commands import state_of_this_job
from flops_fit_executors.worker_process import THREAD_VARIABLES, describe_exit

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

TERM_SECONDS = 20.0
"""Seconds for a checkpoint after SIGTERM. Slurm kills after KillWait, 30 seconds by default."""
STOPPED = (75, -signal.SIGTERM)
"""Exit statuses of a stopped command: from its SIGTERM handler, or before it installed one."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class SlurmJob:
    """The callable that submitit runs in a Slurm job. Submitit also handles the signal before the time limit.

    After a requeue it is called again, and the command continues from its checkpoints.
    """

    study: Path
    queued: QueuedJob
    command: list[str]
    log: Path
    """File to which the command's output is appended."""
    gpus: bool
    threads: int
    grace_period: float
    """Seconds from submitit's signal to the time limit."""

    def __call__(self) -> None:
        Host(self).run()

    def checkpoint(self) -> DelayedSubmission | None:
        """Called by submitit before it requeues the job. None if no run remains to be trained."""
        from submitit.helpers import DelayedSubmission

        if Host.current is not None and not Host.current.stop(
            max(self.grace_period / 2, self.grace_period - 20.0)
        ):
            return None
        return DelayedSubmission(replace(self))


class Host:
    """Runs the command of one job in a child process.

    Signals interrupt the main thread. It only waits, so it never holds a lock that the thread that watches the
    child needs.
    """

    current: Host | None = None
    """Host of this process, for the signal handler."""

    def __init__(self, spec: SlurmJob) -> None:
        self._spec = spec
        self._jobs = QueuedJobs(spec.study)
        self._stopping = False
        self._deadline = float("inf")
        self._status: int | None = None
        """Exit status of the child; None while it runs."""

    # ------------------------------------------------------------------ the main thread

    def run(self) -> None:
        Host.current = self
        signal.signal(signal.SIGTERM, self._terminate)
        queued, log = self._spec.queued, self._spec.log
        log.parent.mkdir(parents=True, exist_ok=True)
        log_start = log.stat().st_size if log.exists() else 0
        try:
            child = self._start()
            threading.Thread(target=self._watch, args=(child,), daemon=True).start()
            status = self._wait()
            if self._was_stopped(status):
                self._requeue()
            elif not self._jobs.state(queued).ended and status != 0:
                self._jobs.end(queued, describe_exit(status, log, log_start) if self._has_remaining() else None)
        except Exception as error:
            # Submitit's signal handler also raises, if the job reached max_requeues.
            if not self._jobs.state(queued).ended:
                self._jobs.end(queued, f"{type(error).__name__}: {error}")
            raise

    def stop(self, seconds: float) -> bool:
        """Let the trainer write a checkpoint and end. Takes no lock. Returns whether runs remain."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        self._stopping = True
        return self._was_stopped(self._wait())

    def _terminate(self, number: int, frame: Any) -> None:
        self._deadline = min(self._deadline, time.monotonic() + TERM_SECONDS)
        self._stopping = True

    def _wait(self) -> int:
        while self._status is None:
            time.sleep(0.05)
        return self._status

    def _was_stopped(self, status: int) -> bool:
        """Whether the command was stopped before the end of the job, and did not fail."""
        stopped = self._stopping or status in STOPPED
        return stopped and not self._jobs.state(self._spec.queued).ended and self._has_remaining()

    def _has_remaining(self) -> bool:
        return self._jobs.remaining(self._spec.queued) is not None

    def _requeue(self) -> None:
        if self._jobs.is_current(self._spec.queued) and state_of_this_job() == "RUNNING":
            # The job was not cancelled or requeued, so it is being preempted or the node shuts down. SIGUSR2 makes
            # submitit requeue it, as at a time limit.
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(1.0)

    # ------------------------------------------------------------------ the command

    def _start(self) -> subprocess.Popen[bytes]:
        threads = dict.fromkeys(THREAD_VARIABLES, str(self._spec.threads))
        hidden = {} if self._spec.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        # Slurm signals every process of a job. Submitit's signal would kill the child.
        with open_log(self._spec.log) as log, blocked(signal.SIGUSR2):
            return subprocess.Popen(
                self._spec.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **threads, **hidden},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        """Wait for the child, and signal it when it must stop."""
        signalled = False
        # WNOWAIT keeps the child's id reserved, so that killpg reaches only its process group.
        while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > self._deadline:
                child.kill()
            elif self._stopping and not signalled:
                signalled = True
                child.terminate()
            time.sleep(0.1)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        self._status = child.wait()


def die_with_parent() -> None:
    """The kernel kills this process when its parent is killed. Called between fork and exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def blocked(number: int) -> Iterator[None]:
    """Block a signal. Processes started meanwhile keep it blocked; this process receives it afterwards."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
