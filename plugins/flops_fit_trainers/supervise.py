"""Runs one program and lets nothing of it outlive its time: ``python supervise.py GRACE COMMAND...``.

The program leads a group of processes. When this one's standard input ends (whoever started it has closed it, or
has died), the group gets SIGTERM, and after GRACE seconds SIGKILL. Whatever way the program ends, what it has left
in its group is killed. Exits with the program's status, or 128 + the number of the signal that ended it.

It is a file to run, not a module to import, and imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

CANNOT_START = 127
"""Status where there is no such program, as a shell has it."""


def main() -> int:
    """Returns the program's status."""
    grace, command = float(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # The end of standard input decides.
    try:
        program = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_ordinary_signals
        )
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror or error}\n")
        return CANNOT_START
    ended = threading.Event()
    threading.Thread(target=_stop_when_told, args=(program.pid, grace, ended), daemon=True).start()
    if hasattr(os, "waitid"):
        # Until it has been waited for, its id still names its group.
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        ended.set()
        _signal(program.pid, signal.SIGKILL)
    status = program.wait()
    ended.set()
    return status if status >= 0 else 128 - status


def _stop_when_told(group: int, grace: float, ended: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    _signal(group, signal.SIGTERM)
    if not ended.wait(grace):
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _ordinary_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
