"""The Ray task that trains the runs of one job."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flops_fit_core import Job, RunResult
from flops_fit_core.plugins import Outbox
from flops_fit_executors.messages import Kind

NO_FOLDER = (
    "the study's folder {folder} does not exist on node {host}: put it on a file system that all nodes share"
)


def train(job: Job, runner: bytes, folder: str, stopper: Any) -> Iterator[tuple[int, bytes]]:
    """Yield the messages of one job: READY with JSON of the process and its log, then PROGRESS and RESULT.

    Each result is written to the study's outbox before it is yielded: Ray loses the last messages of a worker that
    is killed.

    ``runner`` is the pickled ``context.runner``, ``stopper`` the handle of a :class:`Stopper`. Output of user code
    is appended to ``logs/ray-<host>-<pid>.log`` in the study.

    Raises FileNotFoundError if the study's folder does not exist on this node.
    """
    log = Path(folder) / "logs" / f"ray-{socket.gethostname()}-{os.getpid()}.log"
    if not log.parent.is_dir():
        raise FileNotFoundError(NO_FOLDER.format(folder=folder, host=socket.gethostname()))
    should_stop = stop_event(stopper).is_set
    with redirect_output(log) as start:
        process = {"host": socket.gethostname(), "pid": os.getpid(), "log": str(log), "start": start}
        yield Kind.READY, json.dumps(process).encode()
        for record in pickle.loads(runner)(job, should_stop):
            kind = Kind.PROGRESS
            if isinstance(record, RunResult):
                kind = Kind.RESULT
                with suppress(OSError):  # on a full disk, Ray still delivers the result
                    Outbox(Path(folder)).put(record, job.claim_tokens.get(record.id))
            yield kind, record.model_dump_json().encode()


class Stopper:
    """A Ray actor that signals all workers to stop. ``ray.cancel`` would discard a task's last messages."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()

    async def wait(self) -> None:
        """Return when the workers must stop."""
        await self._stopping.wait()

    async def stop(self) -> None:
        self._stopping.set()


@functools.lru_cache(maxsize=1)
def stop_event(stopper: Any) -> threading.Event:
    """An event that is set when the workers must stop, or the driver has exited. Cached: a process trains many
    jobs."""
    stopping = threading.Event()
    stopper.wait.remote().future().add_done_callback(lambda _: stopping.set())
    return stopping


@contextmanager
def redirect_output(log: Path) -> Iterator[int]:
    """Append this process's output to a file. Yields the length of the file before."""
    streams = sys.stdout, sys.stderr
    duplicates = [os.dup(number) for number in (1, 2)]
    with log.open("a", buffering=1) as file:
        start = file.tell()
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        sys.stdout = sys.stderr = file
        try:
            yield start
        finally:
            sys.stdout, sys.stderr = streams
            for number, copy in zip((1, 2), duplicates, strict=True):
                os.dup2(copy, number)
                os.close(copy)
