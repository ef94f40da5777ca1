"""The drivers that train a study now. Each driver writes ``drivers/HOST-PID-*.json`` in the study's folder.

No decision compares clocks: on this machine the process is looked up, and the file of a driver on another machine
is observed for a while.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.checked_json import read_record, write_checked
from flops_fit_core.plugins.protocols import Logger
from flops_fit_core.plugins.utilities import list_files, make_folder
from flops_fit_core.records import Progress, Record, RunResult, SweepPlan

WRITE_SECONDS = 2.0
"""The shortest time between two writes after progress."""
SILENT_SECONDS = 45.0
"""A driver on another machine counts as dead if its file does not change for so long; drivers write every 15."""
RECENT_SECONDS = 120.0
"""``status`` shows the runs of a driver on another machine if it has written within so many seconds."""

logger = logging.getLogger("flops_fit")


def this_machine() -> str:
    """Host name, boot id and process id namespace: containers on one host differ in the namespace only."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def new_owner() -> str:
    """An owner of claims that no other driver has."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Driver(Record):
    """A process that drives a study's sweep."""

    owner: str
    """The owner of its claims."""
    host: str
    pid: int
    process_start: int | None = None
    """When the process started, in clock ticks since the boot; None where the system does not report it."""
    machine: str
    """From :func:`this_machine`: ``pid`` and ``process_start`` are valid only on an equal machine."""
    executor: str
    started: float
    """Unix time, in seconds."""
    updated: float
    beat: int = 0
    """Number of writes of the file."""
    running: tuple[Progress, ...] = ()
    """The latest progress of each run in training."""
    workers: int | None = None
    """Jobs that it trains at the same time; None if unknown before they run, as on a cluster."""
    timings: dict[str, float] = {}
    """Run id -> tokens per second, measured before the sweep for a few sizes."""

    @property
    def is_on_this_machine(self) -> bool:
        return self.machine == this_machine()

    @property
    def is_alive(self) -> bool:
        """Whether its process exists. True on another machine, where the process cannot be looked up."""
        return not self.is_on_this_machine or _is_running(self.pid, self.process_start)

    @property
    def seconds_since_update(self) -> float:
        """Time since the last write by this machine's clock, for display only: clocks differ and jump."""
        return max(0.0, time.time() - self.updated)

    @property
    def is_recent(self) -> bool:
        """Whether ``running`` is worth displaying."""
        return self.is_on_this_machine or self.seconds_since_update < RECENT_SECONDS


class Heartbeat(Logger):
    """Keeps this driver's file up to date, and removes it at the end.

    Threads: any may call :meth:`write`. A file that cannot be written is logged once and tried again later.
    """

    def __init__(
        self,
        study: Path,
        owner: str,
        executor: str,
        *,
        workers: int | None = None,
    ) -> None:
        self.owner = owner
        now = time.time()
        self._driver = Driver(
            owner=owner,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_start=_state_and_start(os.getpid())[1],
            machine=this_machine(),
            executor=executor,
            started=now,
            updated=now,
            workers=workers,
        )
        # Two containers may have one host name and one process id.
        name = f"{self._driver.host}-{self._driver.pid}-{secrets.token_hex(4)}.json"
        self._file = study / "drivers" / name
        self._running: dict[str, Progress] = {}
        self._lock = threading.Lock()
        self._written = 0.0
        self._beat = 0
        self._failed = self._closed = False

    @property
    def timings(self) -> dict[str, float]:
        return self._driver.timings

    def set_timings(self, timings: Mapping[str, float]) -> None:
        """Record timings of a few sizes, for other processes that estimate the time left."""
        self._driver = self._driver.model_copy(update={"timings": dict(timings)})

    def started(self, plan: SweepPlan) -> None:
        self.write()

    def progress(self, progress: Progress) -> None:
        with self._lock:
            self._running[progress.run] = progress
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write()

    def finished(self, result: RunResult) -> None:
        with self._lock:
            self._running.pop(result.id, None)

    def keep_file(self) -> None:
        """Leave the file at the end, for the next driver: this one could not release its claims."""
        with self._lock:
            self._closed = True

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(OSError):  # other drivers have files in the folder
                self._file.unlink(missing_ok=True)
                self._file.parent.rmdir()

    def write(self) -> None:
        """Write the time and the latest progress of each run."""
        with self._lock:
            if self._closed:
                return
            self._written = time.monotonic()
            self._beat += 1
            running = tuple(self._running.values())
            changes = {"updated": time.time(), "beat": self._beat, "running": running}
            try:
                self._write(self._driver.model_copy(update=changes))
                self._failed = False
            except OSError as error:
                if not self._failed:
                    logger.warning("%s cannot be written now, will retry: %s", self._file, error)
                self._failed = True

    def _write(self, driver: Driver) -> None:
        for _ in range(20):
            with contextlib.suppress(FileNotFoundError):  # a driver that ended has removed the empty folder
                make_folder(self._file.parent)
                write_checked(self._file, driver, durable=False)
                return
        write_checked(self._file, driver, durable=False)


# ---------------------------------------------------------------------------- before a driver starts


def announce_start(study: Path) -> None:
    """Show other processes that this one is about to drive the study: planning it again takes a while.

    The file is no driver's file: it starts with a dot. Nothing is written in a folder without a plan.
    """
    if not (study / "plan.json").exists():
        return
    now = time.time()
    announcement = Driver(
        owner="",
        host=socket.gethostname(),
        pid=os.getpid(),
        process_start=_state_and_start(os.getpid())[1],
        machine=this_machine(),
        executor="",
        started=now,
        updated=now,
    )
    with contextlib.suppress(OSError):  # a folder that cannot be written is reported when training starts
        make_folder(study / "drivers")
        write_checked(_announcement_file(study), announcement, durable=False)


def withdraw_start(study: Path) -> None:
    """Remove the announcement of this process, if there is one."""
    file = _announcement_file(study)
    if file.exists():
        with contextlib.suppress(OSError):  # other drivers have files in the folder
            file.unlink(missing_ok=True)
            file.parent.rmdir()


def starting_processes(study: Path) -> list[Driver]:
    """The processes that are about to drive the study."""
    return [item for item in _read_announcements(study).values() if item.is_alive and item.is_recent]


def _read_announcements(study: Path) -> dict[Path, Driver]:
    announced = {}
    for file in list_files(study / "drivers", ".*.json"):
        with contextlib.suppress(ConfigError):  # it has just been removed
            announced[file] = read_record(Driver, file)
    return announced


def _announcement_file(study: Path) -> Path:
    return study / "drivers" / f".{socket.gethostname()}-{os.getpid()}.json"


# ---------------------------------------------------------------------------- other drivers


def drivers(study: Path) -> list[Driver]:
    """The drivers that may train the study now: living processes of this machine, and drivers elsewhere."""
    return [driver for driver in _read_drivers(study).values() if driver.is_alive]


def live_drivers(study: Path) -> list[Driver]:
    """The drivers that certainly train the study now. Empty if there is none.

    Drivers elsewhere are observed until one of them writes its file, for at most ``SILENT_SECONDS``. The files of
    silent drivers are removed: a driver that was only paused writes its file again.
    """
    remove_dead_drivers(study)
    observed = _read_drivers(study)
    if here := [driver for driver in observed.values() if driver.is_on_this_machine]:
        return here
    deadline = time.monotonic() + SILENT_SECONDS
    for driver in observed.values():
        logger.warning(
            "process %d on %s may train this study: waiting up to %.0f s for a sign of it",
            driver.pid,
            driver.host,
            SILENT_SECONDS,
        )
    while observed and time.monotonic() < deadline:
        time.sleep(0.25)
        present = _read_drivers(study)
        changed = [driver for file, driver in present.items() if driver != observed.get(file)]
        if changed:
            return changed
        observed = {file: driver for file, driver in observed.items() if file in present}
    for file in observed:
        file.unlink(missing_ok=True)
    return []


def remove_dead_drivers(study: Path) -> list[str]:
    """Remove the files of drivers that died on this machine. Returns the owners of their claims."""
    _remove_incomplete_files(study / "drivers")
    dead = {file: driver for file, driver in _read_drivers(study).items() if not driver.is_alive}
    announced = [file for file, process in _read_announcements(study).items() if not process.is_alive]
    for file in [*dead, *announced]:
        file.unlink(missing_ok=True)
    return [driver.owner for driver in dead.values()]


def _remove_incomplete_files(folder: Path) -> None:
    """Remove unreadable and temporary files of dead processes of this machine, which a power failure leaves."""
    host = re.escape(socket.gethostname())
    pattern = re.compile(rf"\.?{host}-(\d+)(-[0-9a-f]{{8}})?\.json(\.[0-9a-f]{{8}})?")
    for file in list_files(folder, "*.json*"):
        match = pattern.fullmatch(file.name)
        if match is None or _is_running(int(match[1]), None):
            continue
        with contextlib.suppress(ConfigError):
            read_record(Driver, file)
            if not match[3]:
                continue
        file.unlink(missing_ok=True)


def _read_drivers(study: Path) -> dict[Path, Driver]:
    drivers = {}
    for file in list_files(study / "drivers", "[!.]*.json"):
        try:
            drivers[file] = read_record(Driver, file)
        except ConfigError as error:
            if file.exists():  # otherwise its driver has ended
                _report_damage(file, str(error))
    return drivers


@functools.lru_cache(maxsize=1000)
def _report_damage(file: Path, damage: str) -> None:
    """Cached: the files are read again and again, and the damage is reported once."""
    logger.warning("%s. It is not used; if no driver runs, delete the file", damage)


def _is_running(pid: int, process_start: int | None) -> bool:
    """Whether a process of this machine exists. A zombie does not count, and neither does a later process with the
    same id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    state, start = _state_and_start(pid)
    return state not in ("Z", "X") and (process_start is None or start is None or start == process_start)


def _state_and_start(pid: int) -> tuple[str, int | None]:
    """State of a process and the time of its start in clock ticks since the boot; ``("", None)`` without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, ValueError, IndexError):
        return "", None
