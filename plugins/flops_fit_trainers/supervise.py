"""Run a program and end all of its processes: ``python supervise.py GRACE LOCK COMMAND...``.

The program leads a process group. When standard input of this script ends (its parent has closed it or died), the
group gets SIGTERM, and processes that remain GRACE seconds later get SIGKILL. On Linux this includes processes
that have left the group, such as the workers of torchrun. If the program ends by itself, its remaining processes
are killed at once. The exit status is the program's, or 128 + the number of the signal that killed it.

The file LOCK is locked meanwhile: the script first waits for the program of an earlier attempt to end.

This is a script, not a module, and it imports only the standard library.
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
"""Exit status of a program that does not exist, as in a shell."""
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.05
KILL_SECONDS = 2.0
"""Seconds to wait for killed processes. A process that waits for a disk or a GPU may take longer."""


def main() -> int:
    """Returns the program's status."""
    grace_period, lock, command = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Only the end of standard input stops the program.
    stopping = threading.Event()
    threading.Thread(target=_read_stdin, args=(stopping,), daemon=True).start()
    with open(lock, "ab") as file:  # noqa: PTH123  # importing pathlib takes longer than all other imports
        if not _acquire_lock(file.fileno(), stopping):
            return 128 + signal.SIGTERM
        _adopt_orphans()
        try:
            program = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_restore_signals
            )
        except OSError as error:
            sys.stderr.write(f"cannot start {command[0]}: {error.strerror or error}\n")
            return CANNOT_START
        status = _supervise(program, stopping, grace_period)
        return status if status >= 0 else 128 - status


def _read_stdin(stopping: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stopping.set()


def _supervise(program: subprocess.Popen[bytes], stopping: threading.Event, grace_period: float) -> int:
    ended = threading.Event()
    stopper = threading.Thread(target=_stop_group, args=(program.pid, stopping, ended, grace_period), daemon=True)
    stopper.start()
    if not hasattr(os, "waitid"):
        return program.wait()
    while (pid := _wait_for_child()) != program.pid:
        os.waitpid(pid, 0)  # Reap an orphan. The program is not reaped yet, so its id still names its group.
    if stopping.is_set():
        stopper.join()  # Processes of the group may still be writing.
    ended.set()
    _kill_all(program.pid)
    return program.wait()


def _wait_for_child() -> int:
    """Id of the next child that has ended, without reaping it."""
    info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    assert info is not None  # None is returned only with WNOHANG.
    return info.si_pid


def _stop_group(group: int, stopping: threading.Event, ended: threading.Event, grace_period: float) -> None:
    stopping.wait()
    if ended.is_set():
        return
    _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + grace_period
    while time.monotonic() < deadline and _is_alive(group):
        time.sleep(POLL_SECONDS)
    _kill_all(group)


def _kill_all(group: int) -> None:
    _signal_group(group, signal.SIGKILL)
    deadline = time.monotonic() + KILL_SECONDS
    while (remaining := _descendants()) and time.monotonic() < deadline:
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _is_alive(group: int) -> bool:
    if sys.platform == "linux":
        return bool(_descendants())
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _descendants() -> list[int]:
    """Ids of the living descendants of this process. Empty without /proc."""
    children: dict[int, list[int]] = {}
    dead = set()
    for entry in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208  # as above
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                children.setdefault(int(parent), []).append(int(entry))
                if state in (b"Z", b"X"):
                    dead.add(int(entry))
    pids = [os.getpid()]
    for pid in pids:
        pids += children.get(pid, [])
    return [pid for pid in pids[1:] if pid not in dead]


def _adopt_orphans() -> None:
    """On Linux, orphans become children of this process instead of init, so that they can be found."""
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _acquire_lock(file: int, stopping: threading.Event) -> bool:
    """Wait for the lock. Returns False if the script must stop. Continues without a lock on file systems that do
    not support locks."""
    import fcntl

    has_reported = False
    while not stopping.is_set():
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not has_reported:
                sys.stderr.write("waiting for the program of an earlier attempt to end\n")
                sys.stderr.flush()
            has_reported = True
            stopping.wait(POLL_SECONDS)
        except OSError:
            return True
        else:
            return True
    return False


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _restore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
