"""The driver's side of a worker process."""

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
"""Bytes quoted from the end of a log."""


class WorkerProcess:
    """Starts the process and sends it the pickled ``runner``. Its messages are put into ``inbox``, and GONE once
    it has died and been waited for.

    The process leads a new session: Ctrl-C does not reach it, and its subprocesses die with it. Its output is
    appended to the file ``log``.

    Raises OSError if it cannot be started.
    """

    def __init__(
        self,
        slots: Sequence[int],
        runner: bytes,
        inbox: Inbox,
        *,
        env: Mapping[str, str],
        log: Path,
    ) -> None:
        self.slots = tuple(slots)
        """Numbers of the driver's slots that it occupies."""
        self.ready = False
        self.job: str | None = None
        """Id of its current job."""
        self.dismissed: str | None = None
        """Why the driver has stopped it; None while it may work."""
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
        self._stdin = cast("BinaryIO", self._process.stdin)
        self._stdout = cast("BinaryIO", self._process.stdout)
        # A daemon thread, so that a driver can exit without closing its executor.
        self._thread = threading.Thread(target=self._read_messages, args=(runner, inbox), daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None and self.dismissed is None

    @property
    def is_alive(self) -> bool:
        """False once the process has ended and its subprocesses are killed. Thread-safe."""
        return self._thread.is_alive()

    @property
    def starting(self) -> bool:
        return not self.ready and self.dismissed is None

    def send(self, kind: Kind, payload: bytes = b"") -> bool:
        """Send a message to a ready worker. Returns False if the worker has died."""
        try:
            write(self._stdin, kind, payload)
        except (OSError, ValueError):
            return False
        return True

    def end(self, *, force: bool) -> None:
        """Send SIGTERM to the process and its subprocesses, or SIGKILL with ``force``."""
        # While the thread lives, the process has not been waited for, so its id is not reused.
        if self._thread.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL if force else signal.SIGTERM)
                else:
                    self._process.kill()

    def wait(self, seconds: float) -> None:
        self._thread.join(max(0.0, seconds))

    def describe_exit(self) -> str:
        """How it ended, once it is GONE: ``killed by SIGKILL``, or its exit status and the end of its output."""
        return describe_exit(self._process.returncode, self._log, self._log_start)

    def _read_messages(self, runner: bytes, inbox: Inbox) -> None:
        # If the worker dies meanwhile, the loop below sees the end of its stream.
        with suppress(OSError):
            write(self._stdin, Kind.RUNNER, runner)
        while (message := read(self._stdout))[0] is not Kind.GONE:
            inbox.put((self, *message))
        self._reap()
        inbox.put((self, Kind.GONE, b""))

    def _reap(self) -> None:
        """Wait for the process, and kill its remaining subprocesses."""
        if hasattr(os, "waitid"):
            # WNOWAIT keeps the id reserved, so killpg reaches only this process group.
            with suppress(ChildProcessError, ProcessLookupError, PermissionError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stdout.close()
        with suppress(OSError):
            self._stdin.close()


def describe_exit(status: int, log: Path, start: int) -> str:
    """How a process ended: ``killed by SIGKILL``, or its exit status and its log from byte ``start`` on."""
    if status in (-signal.SIGTERM, -getattr(signal, "SIGKILL", 9)):
        return f"killed by {signal.Signals(-status).name}"
    log_tail = read_log_tail(log, TAIL, start).strip()
    ending = f"exited with status {status}" if status >= 0 else f"killed by {_signal_name(-status)}"
    return f"{ending}: {log_tail}" if log_tail else ending


def environment(slots: Sequence[Mapping[str, str]], threads: int) -> dict[str, str]:
    """Environment of a worker: that of this process, with ``threads`` threads, the variables of its slots and this
    process's import path. Values of several slots are joined by commas, as in CUDA_VISIBLE_DEVICES."""
    names = dict.fromkeys(name for slot in slots for name in slot)
    slot_variables = {
        name: ",".join(filter(None, dict.fromkeys(slot.get(name, "") for slot in slots))) for name in names
    }
    return {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        **slot_variables,
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
