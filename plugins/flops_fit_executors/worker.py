"""A worker process of the executor ``processes``: ``python -m flops_fit_executors.worker``.

Reads jobs from standard input and writes messages to standard output. User code has access to neither: its output
goes to standard error, which is a log file, and its input is empty. A worker never outlives its driver: it exits
as soon as its standard input ends.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from flops_fit_core import Job
from flops_fit_core.plugins import JobRunner
from flops_fit_executors.messages import Kind, read, write, write_record

PR_SET_PDEATHSIG = 1


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The driver handles Ctrl-C.
    faulthandler.enable()
    die_with_driver()
    inbox, outbox = take_standard_streams()
    pickled_runner = read(inbox)[1]
    jobs, stopping = listen(inbox)
    terminated = threading.Event()

    def terminate(number: int, frame: Any) -> None:
        """Sent by the driver, or by a system that shuts down: let the trainer write a checkpoint and end."""
        terminated.set()
        stopping.set()
        jobs.put(None)

    signal.signal(signal.SIGTERM, terminate)

    # Import before READY: a worker that cannot import the runner is never ready.
    runner: JobRunner = pickle.loads(pickled_runner)
    runner.preload()
    write(outbox, Kind.READY)
    while (job := jobs.get()) is not None:
        error_text = ""
        try:
            for record in runner(Job.model_validate_json(job), stopping.is_set):
                write_record(outbox, record)
        except BrokenPipeError:
            os._exit(1)
        except Exception as error:
            traceback.print_exc()
            error_text = f"{type(error).__name__}: {error}"
        if terminated.is_set():
            error_text = "stopped by SIGTERM"
        write(outbox, Kind.ENDED, error_text.encode())
    sys.stdout.flush()
    os._exit(0)  # As multiprocessing's workers do: torch's cleanup would delay the driver by a second.


def listen(inbox: BinaryIO) -> tuple[queue.SimpleQueue[str | None], threading.Event]:
    """Start a thread that reads messages, so that STOP also arrives in the middle of a job.

    Returns a queue of jobs as JSON, with None after the last, and an event that is set by STOP.
    """
    jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    stopping = threading.Event()

    def read_messages() -> None:
        while True:
            kind, payload = read(inbox)
            if kind is Kind.JOB:
                jobs.put(payload.decode())
            elif kind is Kind.STOP:
                stopping.set()
                jobs.put(None)
            else:
                os._exit(1)

    threading.Thread(target=read_messages, daemon=True).start()
    return jobs, stopping


def take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Move the driver's two pipes to file descriptors that neither user code nor its subprocesses use."""
    inbox, outbox = open(os.dup(0), "rb", closefd=False), open(os.dup(1), "wb", closefd=False)  # noqa: SIM115
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    if hasattr(os, "register_at_fork"):
        # If a forked data loader kept a pipe open, the driver would not notice the death of this process.
        for stream in (inbox, outbox):
            os.register_at_fork(after_in_child=partial(os.close, stream.fileno()))
    return inbox, outbox


def die_with_driver() -> None:
    """On Linux, the kernel kills this process with its driver. The reading thread alone cannot: a long call that
    holds the interpreter lock would delay it."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
