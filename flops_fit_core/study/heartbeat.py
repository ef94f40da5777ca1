"""Who trains a study now: a note of each driver, for people and for other programs.

drivers/<owner>.json
"""

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
"""Between two writings of a note."""
LONG_AGO = 120.0
"""Seconds after which a note from another machine tells of nobody any more; drivers write every 15."""


def this_machine() -> str:
    """Its name, when it was started, and where its process ids count: containers may share the first two."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


class Driver(Record):
    """One process that trains a study's runs, or has others train them."""

    owner: str
    """In whose name it claims runs."""
    host: str
    pid: int
    machine: str
    """Where ``pid`` means something: equal for processes that see each other."""
    executor: str
    started: float
    """Unix time, in seconds."""
    updated: float
    running: tuple[Progress, ...] = ()
    """The latest that was heard of each run that is being trained."""

    @property
    def is_there(self) -> bool:
        """Whether it still lives; of another machine, whether it was heard of lately."""
        if self.machine != this_machine():
            return time.time() - self.updated < LONG_AGO
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


class Heartbeat(Logger):
    """Keeps this driver's note up to date, and removes it at the end."""

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
        with contextlib.suppress(OSError):  # other drivers are there
            self._file.parent.rmdir()

    def write(self) -> None:
        """Say that this driver is there, and what it has heard last."""
        self._written = time.monotonic()
        now = self._driver.model_copy(update={"updated": time.time(), "running": tuple(self._running.values())})
        write_atomically(self._file, now.model_dump_json())


def drivers(study: Path) -> list[Driver]:
    """Those that train the study now."""
    return [driver for driver in _notes(study).values() if driver.is_there]


def dead_owners(study: Path) -> list[str]:
    """In whose names drivers have claimed runs that died on this machine. Their notes are gone after this."""
    dead = {
        file: driver
        for file, driver in _notes(study).items()
        if driver.machine == this_machine() and not driver.is_there
    }
    for file in dead:
        file.unlink(missing_ok=True)
    return [driver.owner for driver in dead.values()]


def _notes(study: Path) -> dict[Path, Driver]:
    found = {}
    for file in sorted((study / "drivers").glob("[!.]*.json")):
        with contextlib.suppress(OSError, ValidationError):
            found[file] = Driver.model_validate_json(file.read_text())
    return found


def seconds_left(plan: SweepPlan, finished: set[str], running: Sequence[Progress]) -> float | None:
    """Time until all is trained at the present rate; None where nothing is being trained."""
    runs = {run.id: run for run in plan.runs}
    known = [(one, runs[one.run]) for one in running if one.run in runs and one.tokens_per_second]
    rate = sum((one.tokens_per_second or 0.0) * run.flops_per_token for one, run in known)
    if not rate:
        return None
    begun = sum(one.tokens * run.flops_per_token for one, run in known)
    return max(0.0, plan.flops_left(finished) - begun) / rate
