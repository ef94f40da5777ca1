"""The further processes of a run that several devices train: started, met, ended.

The process that was given the job is the first one and starts the others on its own machine. They go through the
same job and keep what comes of it to themselves.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from flops_fit_core.errors import RunFailed
from flops_fit_core.training.distributed import Processes

PATIENCE = datetime.timedelta(minutes=10)
"""For how long one process waits for the others at any one point."""
LAST_WORDS = 5.0
"""Seconds to wait for what a process says that has ended the work of all."""
HOST = "127.0.0.1"
CONSEQUENCES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What a process says when another one has gone."""

_failed: list[Exception] = []
"""Kept with all that their frames hold: gloo's destructors wait up to PATIENCE for an exchange that failed."""


@contextmanager
def peers(size: int, job: str, plugins: str, objects: bytes | None, folder: Path) -> Iterator[Processes]:
    """Start the other ``size - 1`` processes of a job, and be the first of them.

    Raises RunFailed, with its last words, where one of them ends before its time.
    """
    store = TCPStore(HOST, 0, size, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    greeting = {"job": job, "plugins": plugins, "folder": str(folder), "port": store.port, "size": size}
    others = [_start(rank, greeting, objects) for rank in range(1, size)]
    try:
        yield _join(0, size, store)
    except Exception as error:
        _failed.append(error)
        said = _last_words(others)
        if said and not said.endswith(f"{type(error).__name__}: {error}"):
            raise RunFailed(said) from error
        raise
    finally:
        for other in others:
            other.kill()
            with suppress(OSError), other:  # waits for it, and closes its pipes
                pass
        _leave()


def _leave() -> None:
    """Give the group up; where one has failed in the middle of an exchange, that may wait for what never comes."""

    def destroy() -> None:
        with suppress(Exception):
            dist.destroy_process_group()

    leaving = threading.Thread(target=destroy, daemon=True)
    leaving.start()
    leaving.join(LAST_WORDS)


def _join(rank: int, size: int, store: Store) -> Processes:
    if sys.platform == "linux":
        # All are on this machine, whose name need not resolve to an address of its own.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return Processes(rank, size, dist.new_group(backend="gloo", timeout=PATIENCE))


def _start(rank: int, greeting: dict[str, Any], objects: bytes | None) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from flops_fit_core.training.peers import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "LOCAL_RANK": str(rank), "FLOPS_FIT_LOCAL_RANK": str(rank)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({**greeting, "rank": rank, "objects": len(objects or b"")}).encode() + b"\n")
    process.stdin.write(objects or b"")
    process.stdin.flush()
    return process


def _last_words(others: list[subprocess.Popen[bytes]]) -> str:
    """Why the first of them ended that did so by itself; empty where none did."""
    for rank, other in enumerate(others, 1):
        with suppress(subprocess.TimeoutExpired):
            other.wait(LAST_WORDS)
        if other.returncode:
            assert other.stdout is not None
            words = other.stdout.read().decode(errors="replace").strip()
            if not any(consequence in words for consequence in CONSEQUENCES):
                return f"process {rank} of the run: {words or f'ended with status {other.returncode}'}"
    return ""


def main() -> None:
    """Be one of the others: train along, until the first one is done or gone."""
    from flops_fit_core.training.worker import train_along

    # Whoever signals a whole job (scancel, Ctrl-C) means the first process, which tells the others when to stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # User code prints to where the first process's does; what we say goes through the pipe.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    greeting = json.loads(sys.stdin.buffer.readline())
    objects = sys.stdin.buffer.read(greeting["objects"]) or None
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    try:
        rank, size = greeting["rank"], greeting["size"]
        store = TCPStore(HOST, greeting["port"], size, is_master=False, timeout=PATIENCE)
        train_along(
            greeting["job"], greeting["plugins"], objects, Path(greeting["folder"]), _join(rank, size, store)
        )
    except BaseException as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=answer, flush=True)
        os._exit(1)
    os._exit(0)


def _end_with_the_first() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
