"""Runs one program and lets nothing of it outlive its time: ``python supervise.py GRACE LOCK COMMAND...``.

The program leads a group of processes. When this one's standard input ends (whoever started it has closed it, or
has died), the group gets SIGTERM, and what is left GRACE seconds later gets SIGKILL; on Linux also what has left
the group, as the workers of torchrun do. What a program leaves behind that ends by itself is killed at once. Exits
with the program's status, or 128 + the number of the signal that ended it.

The file LOCK is held until then. The program of an earlier attempt that has not ended yet is waited for.

It is a file to run, not a module to import, and imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

CANNOT_START = 127
"""Status where there is no such program, as a shell has it."""
PR_SET_CHILD_SUBREAPER = 36
LOOK_SECONDS = 0.05
KILLING_SECONDS = 2.0
"""For what SIGKILL has hit to be gone. What waits for a disk or a GPU may take longer, and is not waited for."""


def main() -> int:
    """Returns the program's status."""
    grace_period, lock, command = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # The end of standard input decides.
    told = threading.Event()
    threading.Thread(target=_listen, args=(told,), daemon=True).start()
    with open(lock, "ab") as file:  # noqa: PTH123  # pathlib takes longer to import than all else here
        if not _wait_for_turn(file.fileno(), told):
            return 128 + signal.SIGTERM
        _adopt_orphans()
        try:
            program = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_ordinary_signals
            )
        except OSError as error:
            sys.stderr.write(f"cannot start {command[0]}: {error.strerror or error}\n")
            return CANNOT_START
        status = _supervise(program, told, grace_period)
        return status if status >= 0 else 128 - status


def _listen(told: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    told.set()


def _supervise(program: subprocess.Popen[bytes], told: threading.Event, grace_period: float) -> int:
    ended = threading.Event()
    stopper = threading.Thread(target=_stop_when_told, args=(program.pid, told, ended, grace_period), daemon=True)
    stopper.start()
    if not hasattr(os, "waitid"):
        return program.wait()
    while (pid := _ended_child()) != program.pid:
        os.waitpid(pid, 0)  # An orphan. The program itself is not waited for: its id still names its group.
    if told.is_set():
        stopper.join()  # What it has started may still be writing.
    ended.set()
    _kill_all(program.pid)
    return program.wait()


def _ended_child() -> int:
    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    assert found is not None  # None is for WNOHANG.
    return found.si_pid


def _stop_when_told(group: int, told: threading.Event, ended: threading.Event, grace_period: float) -> None:
    told.wait()
    if ended.is_set():
        return
    _signal_group(group, signal.SIGTERM)
    until = time.monotonic() + grace_period
    while time.monotonic() < until and _anything_left(group):
        time.sleep(LOOK_SECONDS)
    _kill_all(group)


def _kill_all(group: int) -> None:
    _signal_group(group, signal.SIGKILL)
    until = time.monotonic() + KILLING_SECONDS
    while (left := _descendants()) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)


def _anything_left(group: int) -> bool:
    if sys.platform == "linux":
        return bool(_descendants())
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _descendants() -> list[int]:
    """Living processes that came of this one. Empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    dead = set()
    for entry in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208  # as above
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                children.setdefault(int(parent), []).append(int(entry))
                if state in (b"Z", b"X"):
                    dead.add(int(entry))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return [pid for pid in found[1:] if pid not in dead]


def _adopt_orphans() -> None:
    """Linux: what loses its parent becomes a child of this process, not of init, and so can be found."""
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wait_for_turn(file: int, told: threading.Event) -> bool:
    """Whether the file is locked; not where it is time to stop. A file that cannot be locked counts as locked."""
    import fcntl

    said = False
    while not told.is_set():
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                sys.stderr.write("waiting for the program of an earlier attempt to end\n")
                sys.stderr.flush()
            said = True
            told.wait(LOOK_SECONDS)
        except OSError:
            return True
        else:
            return True
    return False


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _ordinary_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
