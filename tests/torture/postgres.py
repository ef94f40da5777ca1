"""PostgreSQL in the middle of a sweep: the server is killed, a connection is cut, a statement is frozen."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from postgres_server import PostgresServer, postgres_server
from postgres_server import missing_requirement as missing_server

from torture import experiments
from torture.checker import acknowledged
from torture.recovery import after_fault
from torture.session import Session
from torture.timing import random_moment
from torture.zygote import Trial

LEASE = 3.0
RUNS = 6
ROUNDS = 30
"""Rounds per scenario in full mode."""
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


def missing_requirement() -> str | None:
    """A missing requirement of the server or the store; None if both can be used."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: pip install 'flops-fit[postgres]'"
    return missing_server()


def new_store(server: PostgresServer) -> dict[str, Any]:
    """A study with a new name on the server."""
    return {"name": "postgres", "url": server.url(), "study": uuid.uuid4().hex}


def run(session: Session) -> None:
    """Every scenario with one and with two drivers."""
    if (missing := missing_requirement()) is not None:
        session.tally.skip("postgres", missing)
        return
    scenarios: dict[str, Callable[[PostgresServer], None]] = {
        "server killed": kill_server,
        "connection cut": cut_connections,
        "statement frozen": freeze_backends,
    }
    with postgres_server() as server:
        for name, inject in scenarios.items():
            for number in range(session.number(ROUNDS)):
                if session.only in name:
                    table = experiments.noisy(new_store(server), runs=RUNS, seconds=0.2)
                    with session.trial(Trial(table, "postgres", lease=LEASE)) as trial:
                        check = partial(disturb, trial, server, inject, 1 + number % 2, session)
                        session.check("postgres", name, f"round {number}", check)
                        session.tally.acknowledged += len(acknowledged(trial))


def disturb(
    trial: Trial, server: PostgresServer, inject: Callable[[PostgresServer], None], count: int, session: Session
) -> list[str]:
    """The drivers connect again, and complete the plan."""
    drivers = [trial.start() for _ in range(count)]
    random_moment(drivers[0], RUNS, session.random, gap=0.3)
    inject(server)
    violations = []
    for driver in drivers:
        ended = driver.wait(90)
        if ended.status != 0:
            violations.append(f"a driver: {ended}: {driver.text.strip()[-300:]}")
    return violations + after_fault(trial, None)


def kill_server(server: PostgresServer) -> None:
    """SIGKILL for the server and its backends, as after running out of memory; restart after half a second."""
    for pid in processes_in(server.base / "data"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.stop()
    time.sleep(0.5)
    server.start()


def processes_in(folder: Path) -> list[int]:
    """Processes with this working folder: all of a server's."""
    pids = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if (entry / "cwd").readlink() == folder:
                pids.append(int(entry.name))
    return pids


def cut_connections(server: PostgresServer) -> None:
    for (pid,) in server.query(BACKENDS):
        server.query("SELECT pg_terminate_backend(%s)", pid)


def freeze_backends(server: PostgresServer) -> None:
    """Stop every backend for longer than the lease, in the middle of its statement or between two."""
    backends = [int(pid) for (pid,) in server.query(BACKENDS)]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in backends:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(LEASE + 1)
