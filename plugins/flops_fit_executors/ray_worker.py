"""What a Ray task of the executor ``ray`` does: it trains the runs of one job."""

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

NO_FOLDER = "the study's folder {folder} is not on the node {host}: all nodes of the cluster have to share it"


def train(job: Job, runner: bytes, folder: str, stopper: Any) -> Iterator[tuple[int, bytes]]:
    """The messages of one job: READY with JSON of where it is trained, then PROGRESS and RESULT.

    A result is in the study's outbox before it is said: Ray loses what a worker said last when it is killed.

    ``runner`` is the pickled ``context.runner``, and ``stopper`` the handle of a :class:`Stopper`. What user code
    prints is appended to ``logs/ray-<host>-<pid>.log`` in the study.

    Raises FileNotFoundError where the study's folder is not on this node.
    """
    log = Path(folder) / "logs" / f"ray-{socket.gethostname()}-{os.getpid()}.log"
    if not log.parent.is_dir():
        raise FileNotFoundError(NO_FOLDER.format(folder=folder, host=socket.gethostname()))
    should_stop = stopping_with(stopper).is_set
    with printing_to(log) as start:
        where = {"host": socket.gethostname(), "pid": os.getpid(), "log": str(log), "start": start}
        yield Kind.READY, json.dumps(where).encode()
        for record in pickle.loads(runner)(job, should_stop):
            kind = Kind.PROGRESS
            if isinstance(record, RunResult):
                kind = Kind.RESULT
                with suppress(OSError):  # a full disk; Ray says it all the same
                    Outbox(Path(folder)).put(record)
            yield kind, record.model_dump_json().encode()


class Stopper:
    """A Ray actor: workers ask it once, and have the answer when the driver wants them to stop.

    (``ray.cancel`` would cut off what a task still says.)
    """

    def __init__(self) -> None:
        self._stopping = asyncio.Event()

    async def wanted(self) -> None:
        """Returns when it is time to stop."""
        await self._stopping.wait()

    async def stop(self) -> None:
        self._stopping.set()


@functools.lru_cache(maxsize=1)
def stopping_with(stopper: Any) -> threading.Event:
    """Set once the driver wants its workers to stop, or has gone. One a process, which may do many jobs."""
    stopping = threading.Event()
    stopper.wanted.remote().future().add_done_callback(lambda _: stopping.set())
    return stopping


@contextmanager
def printing_to(log: Path) -> Iterator[int]:
    """Let all that this process prints go to the end of a file; gives its length before."""
    streams = sys.stdout, sys.stderr
    kept = [os.dup(number) for number in (1, 2)]
    with log.open("a", buffering=1) as file:
        start = file.tell()
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        sys.stdout = sys.stderr = file
        try:
            yield start
        finally:
            sys.stdout, sys.stderr = streams
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
