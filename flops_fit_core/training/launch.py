"""The processes of a run on several devices: how they are started, meet and end.

The process that gets the job is the first of them. It starts the others on its machine. They train the same job,
and their results are dropped.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from flops_fit_core.errors import RunFailed
from flops_fit_core.training.distributed import TorchDistributedContext

EXCHANGE_TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others in one exchange."""
EXIT_SECONDS = 5.0
"""How long the first process waits for the error message of a process that failed."""
HOST = "127.0.0.1"
LOST_CONNECTION_MESSAGES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""Parts of the error message of a process that ended because another process had failed."""

_errors: list[Exception] = []
"""Keeps errors and the frames in their tracebacks alive: the destructors of gloo's objects in these frames wait up
to EXCHANGE_TIMEOUT for an exchange that failed."""


@contextmanager
def launch_processes(
    size: int, code: str, message: dict[str, Any], objects: bytes | None
) -> Iterator[TorchDistributedContext]:
    """Start the other ``size - 1`` processes of a job, and join them as the first.

    Args:
        size: Number of processes, this one included.
        code: Python code that the others run. It must call :func:`run_process`.
        message: JSON for the others.
        objects: Bytes for the others.

    Raises RunFailed with the error message of the first other process that failed.
    """
    store = TCPStore(HOST, 0, size, is_master=True, wait_for_workers=False, timeout=EXCHANGE_TIMEOUT)
    message = {**message, "port": store.port, "size": size}
    processes = [_start(rank, code, message, objects) for rank in range(1, size)]
    try:
        yield _join(0, size, store)
    except Exception as error:
        _errors.append(error)
        failure = _first_failure(processes)
        if failure and not failure.endswith(f"{type(error).__name__}: {error}"):
            raise RunFailed(failure) from error
        raise
    finally:
        for process in processes:
            process.kill()
            with suppress(OSError), process:  # waits for it, and closes its pipes
                pass
        _destroy_process_group()


def _start(rank: int, code: str, message: dict[str, Any], objects: bytes | None) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "LOCAL_RANK": str(rank), "FLOPS_FIT_LOCAL_RANK": str(rank)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({**message, "rank": rank, "objects": len(objects or b"")}).encode() + b"\n")
    process.stdin.write(objects or b"")
    process.stdin.flush()
    return process


def _join(rank: int, size: int, store: Store) -> TorchDistributedContext:
    if sys.platform == "linux":
        # All processes are on this machine. Its host name need not resolve to one of its addresses.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=EXCHANGE_TIMEOUT)
    return TorchDistributedContext(rank, size, dist.new_group(backend="gloo", timeout=EXCHANGE_TIMEOUT))


def _first_failure(processes: list[subprocess.Popen[bytes]]) -> str:
    """The error message of the first process that failed by itself. Empty if none did."""
    for rank, process in enumerate(processes, 1):
        with suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
        if process.returncode:
            assert process.stdout is not None
            output = process.stdout.read().decode(errors="replace").strip()
            if not any(message in output for message in LOST_CONNECTION_MESSAGES):
                return f"process {rank} of the run: {output or f'ended with status {process.returncode}'}"
    return ""


def _destroy_process_group() -> None:
    """In a thread, for a limited time: after a failed exchange, this may wait for a process that has ended."""

    def destroy() -> None:
        with suppress(Exception):
            dist.destroy_process_group()

    thread = threading.Thread(target=destroy, daemon=True)
    thread.start()
    thread.join(EXIT_SECONDS)


def run_process(train: Callable[[dict[str, Any], bytes | None, TorchDistributedContext], None]) -> NoReturn:
    """Be a process that :func:`launch_processes` has started: read the message, join, train and exit.

    Args:
        train: Called with the message, the objects and the context of this process.
    """
    # A signal to the whole job (scancel, Ctrl-C) is for the first process, which makes all processes stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The pipe on stdout is for the error message. Output of user code goes to stderr.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    message = json.loads(sys.stdin.buffer.readline())
    objects = sys.stdin.buffer.read(message["objects"]) or None
    threading.Thread(target=_exit_with_first_process, daemon=True).start()
    try:
        rank, size = message["rank"], message["size"]
        store = TCPStore(HOST, message["port"], size, is_master=False, timeout=EXCHANGE_TIMEOUT)
        train(message, objects, _join(rank, size, store))
    except BaseException as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=pipe, flush=True)
        os._exit(1)
    os._exit(0)  # without destructors of gloo's objects, which may wait for the first process


def _exit_with_first_process() -> None:
    """The pipe on stdin ends when the first process ends, however that happens."""
    sys.stdin.buffer.read()
    os._exit(1)
