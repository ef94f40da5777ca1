"""The drivers that train a study now. Each driver writes ``drivers/HOST-PID.json`` in the study's folder."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from flops_fit_core.plugins.protocols import Logger
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import Progress, Record, RunResult, SweepPlan

WRITE_SECONDS = 2.0
"""The shortest time between two writes after progress."""
EXPIRY_SECONDS = 120.0
"""A driver on another machine counts as dead after this many seconds without a write; drivers write every 15."""


def this_machine() -> str:
    """Host name, boot id and process id namespace: containers on one host differ in the namespace only."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


class Driver(Record):
    """A process that drives a study's sweep."""

    owner: str
    """The owner of its claims."""
    host: str
    pid: int
    machine: str
    """From :func:`this_machine`: ``pid`` is valid only on an equal machine."""
    executor: str
    started: float
    """Unix time, in seconds."""
    updated: float
    running: tuple[Progress, ...] = ()
    """The latest progress of each run in training."""

    @property
    def is_alive(self) -> bool:
        """Whether its process exists; on another machine, whether it has written lately."""
        if self.machine != this_machine():
            return time.time() - self.updated < EXPIRY_SECONDS
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


class Heartbeat(Logger):
    """Keeps this driver's file up to date, and removes it at the end."""

    def __init__(self, study: Path, owner: str, executor: str) -> None:
        now = time.time()
        self._driver = Driver(
            owner=owner,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=this_machine(),
            executor=executor,
            started=now,
            updated=now,
        )
        self._file = study / "drivers" / f"{self._driver.host}-{self._driver.pid}.json"
        self._running: dict[str, Progress] = {}
        self._written = 0.0

    def started(self, plan: SweepPlan) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def progress(self, progress: Progress) -> None:
        self._running[progress.run] = progress
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write()

    def finished(self, result: RunResult) -> None:
        self._running.pop(result.id, None)

    def close(self) -> None:
        self._file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other drivers have files in it
            self._file.parent.rmdir()

    def write(self) -> None:
        """Write the time and the latest progress of each run."""
        self._written = time.monotonic()
        now = self._driver.model_copy(update={"updated": time.time(), "running": tuple(self._running.values())})
        write_atomically(self._file, now.model_dump_json())


def drivers(study: Path) -> list[Driver]:
    """The drivers that train the study now."""
    return [driver for driver in _read_drivers(study).values() if driver.is_alive]


def remove_dead_drivers(study: Path) -> list[str]:
    """Remove the files of drivers that died on this machine. Returns the owners of their claims."""
    dead = {
        file: driver
        for file, driver in _read_drivers(study).items()
        if driver.machine == this_machine() and not driver.is_alive
    }
    for file in dead:
        file.unlink(missing_ok=True)
    return [driver.owner for driver in dead.values()]


def _read_drivers(study: Path) -> dict[Path, Driver]:
    drivers = {}
    for file in sorted((study / "drivers").glob("[!.]*.json")):
        with contextlib.suppress(OSError, ValidationError):
            drivers[file] = Driver.model_validate_json(file.read_text())
    return drivers


def seconds_left(plan: SweepPlan, finished: set[str], running: Sequence[Progress]) -> float | None:
    """Time to finish the plan at the present rate, in seconds; None if no run reports a rate."""
    runs = {run.id: run for run in plan.runs}
    active = [(item, runs[item.run]) for item in running if item.run in runs and item.tokens_per_second]
    rate = sum((item.tokens_per_second or 0.0) * run.flops_per_token for item, run in active)
    if not rate:
        return None
    done = sum(item.tokens * run.flops_per_token for item, run in active)
    return max(0.0, plan.flops_left(finished) - done) / rate
