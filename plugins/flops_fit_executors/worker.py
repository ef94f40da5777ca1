"""A worker process of the executor ``processes``: ``python -m flops_fit_executors.worker``.

Takes jobs from standard input and answers on standard output. User code gets neither: what it prints goes to
standard error, which the driver has pointed to a log file, and what it reads is empty. A worker never outlives
its driver: it exits at once when its standard input ends.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which decides.
    faulthandler.enable()
    die_with_the_driver()
    inbox, outbox = take_standard_streams()
    pickled_runner = read(inbox)[1]
    jobs, stopping = listen(inbox)
    terminated = threading.Event()

    def terminate(number: int, frame: Any) -> None:
        """From the driver, or from whoever wants the machine back: let the trainer write a checkpoint and end."""
        terminated.set()
        stopping.set()
        jobs.put(None)

    signal.signal(signal.SIGTERM, terminate)

    # Imported now, so that a worker that cannot import it is never ready.
    runner: JobRunner = pickle.loads(pickled_runner)
    runner.preload()
    write(outbox, Kind.READY)
    while (job := jobs.get()) is not None:
        ending = ""
        try:
            for record in runner(Job.model_validate_json(job), stopping.is_set):
                write_record(outbox, record)
        except BrokenPipeError:
            os._exit(1)
        except Exception as error:
            traceback.print_exc()
            ending = f"{type(error).__name__}: {error}"
        if terminated.is_set():
            ending = "stopped by SIGTERM"
        write(outbox, Kind.ENDED, ending.encode())
    sys.stdout.flush()
    os._exit(0)  # Like multiprocessing's workers: taking torch apart would hold the driver up for a second.


def listen(inbox: BinaryIO) -> tuple[queue.SimpleQueue[str | None], threading.Event]:
    """The jobs as they arrive, None after the last; and whether the driver wants this worker to stop.

    A thread of its own hears of it in the middle of a job, too.
    """
    jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    stopping = threading.Event()

    def hear() -> None:
        while True:
            kind, payload = read(inbox)
            if kind is Kind.JOB:
                jobs.put(payload.decode())
            elif kind is Kind.STOP:
                stopping.set()
                jobs.put(None)
            else:
                os._exit(1)

    threading.Thread(target=hear, daemon=True).start()
    return jobs, stopping


def take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """The driver's two pipes, moved to where neither user code nor its subprocesses can get at them."""
    inbox, outbox = open(os.dup(0), "rb", closefd=False), open(os.dup(1), "wb", closefd=False)  # noqa: SIM115
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    if hasattr(os, "register_at_fork"):
        # A forked data loader that kept the pipe open would hide this process's death.
        for stream in (inbox, outbox):
            os.register_at_fork(after_in_child=partial(os.close, stream.fileno()))
    return inbox, outbox


def die_with_the_driver() -> None:
    """Where the system can: for a driver killed while this process holds the interpreter for long."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
