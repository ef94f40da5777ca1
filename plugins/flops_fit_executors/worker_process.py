"""One worker process as the driver sees it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from flops_fit_core.plugins import read_log_tail
from flops_fit_executors.messages import Kind, read, write

Inbox = queue.SimpleQueue[tuple["WorkerProcess", Kind, bytes]]
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
TAIL = 8_000
"""Bytes at the end of a log that are quoted."""


class WorkerProcess:
    """Started when constructed: sends it the pickled ``runner``, and puts its messages into ``inbox``, with GONE
    once it has died and been waited for.

    It leads a session of its own: Ctrl-C does not reach it, and what it started itself dies with it. What it
    prints is appended to the file ``log``.

    Raises OSError where it cannot be started.
    """

    def __init__(
        self,
        places: Sequence[int],
        runner: bytes,
        inbox: Inbox,
        *,
        env: Mapping[str, str],
        log: Path,
    ) -> None:
        self.places = tuple(places)
        """Which of its driver's places it takes up."""
        self.ready = False
        self.job: str | None = None
        """The id of the job it has."""
        self.dismissed: str | None = None
        """Why the driver wants it to end."""
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._log_start = file.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flops_fit_executors.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=env,
                start_new_session=True,
            )
        self._to = cast("BinaryIO", self._process.stdin)
        self._from = cast("BinaryIO", self._process.stdout)
        # A daemon: a driver that ends without closing its executor is not held up by a worker.
        self._thread = threading.Thread(target=self._converse, args=(runner, inbox), daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None and self.dismissed is None

    @property
    def starting(self) -> bool:
        return not self.ready and self.dismissed is None

    def tell(self, kind: Kind, payload: bytes = b"") -> bool:
        """Send a message to a worker that is ready. False where it has died."""
        try:
            write(self._to, kind, payload)
        except (OSError, ValueError):
            return False
        return True

    def end(self, *, force: bool) -> None:
        """Signal the process and all that it started: SIGTERM, or SIGKILL by ``force``."""
        # While the thread lives, the process has not been waited for and its id is nobody else's.
        if self._thread.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL if force else signal.SIGTERM)
                else:
                    self._process.kill()

    def wait(self, seconds: float) -> None:
        self._thread.join(max(0.0, seconds))

    def fate(self) -> str:
        """How it ended, once it is GONE: ``killed by SIGKILL``, or its exit status and what it said last."""
        return describe_exit(self._process.returncode, self._log, self._log_start)

    def _converse(self, runner: bytes, inbox: Inbox) -> None:
        # A worker that dies meanwhile is met again as the end of its stream.
        with suppress(OSError):
            write(self._to, Kind.RUNNER, runner)
        while (message := read(self._from))[0] is not Kind.GONE:
            inbox.put((self, *message))
        self._bury()
        inbox.put((self, Kind.GONE, b""))

    def _bury(self) -> None:
        if hasattr(os, "waitid"):
            # Until it has been waited for, its id still names its group: end what it left behind.
            with suppress(ChildProcessError, ProcessLookupError, PermissionError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._from.close()
        with suppress(OSError):
            self._to.close()


def describe_exit(status: int, log: Path, start: int) -> str:
    """How a process ended: ``killed by SIGKILL``, or its exit status and the end of its log from ``start`` on."""
    if status in (-signal.SIGTERM, -getattr(signal, "SIGKILL", 9)):
        return f"killed by {signal.Signals(-status).name}"
    log_tail = read_log_tail(log, TAIL, start).strip()
    how = f"exited with status {status}" if status >= 0 else f"killed by {_signal_name(-status)}"
    return f"{how}: {log_tail}" if log_tail else how


def environment(slots: Sequence[Mapping[str, str]], threads: int) -> dict[str, str]:
    """A worker's environment: that of this process, with so many threads, the variables of its slots (of several,
    the values joined by commas, as CUDA_VISIBLE_DEVICES takes them), and a PYTHONPATH under which it imports what
    this process would."""
    names = dict.fromkeys(name for slot in slots for name in slot)
    together = {
        name: ",".join(filter(None, dict.fromkeys(slot.get(name, "") for slot in slots))) for name in names
    }
    return {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        **together,
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
