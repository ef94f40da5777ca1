"""Start and stop the program of a run, and read its output."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from flops_fit_core import ConfigError
from flops_fit_core.plugins import open_log, read_log_tail
from flops_fit_trainers.supervise import CANNOT_START

SUPERVISOR = Path(__file__).with_name("supervise.py")
TAIL_LINES = 50
TAIL_LENGTH = 16_000
TAIL_BYTES = 64_000
SUMMARY_LENGTH = 300
_RAISED = re.compile(r"(?:\[\w+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt): .+)")
"""The last line of a traceback. torchrun may write ``[rank3]:`` before it."""
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]")
"""Colours and other control characters."""


class Program:
    """A program under a supervisor, to be used with ``with``.

    The supervisor ends the program when this process closes it or dies. Before it starts the program, it waits for
    an earlier program with the same log to end. Output is appended to the file ``log``.

    Raises ConfigError for a working directory that does not exist.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], directory: Path, log: Path, grace_period: float
    ) -> None:
        if not directory.is_dir():
            raise ConfigError(f"trainer.directory: there is no folder {directory}")
        self._log = log
        self._grace_period = grace_period
        with open_log(log) as file:
            self._log_start = file.tell()
            self._supervisor = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(SUPERVISOR),
                    str(grace_period),
                    str(log.with_name("lock")),
                    *command,
                ],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=env,
                cwd=directory,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self, seconds: float) -> int | None:
        """Wait up to ``seconds`` for the exit status. Returns None if the program still runs."""
        try:
            return self._supervisor.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Send SIGTERM to the process group, and SIGKILL to all remaining descendants once the program has ended
        or the grace period is over. Waits for the end. Idempotent."""
        assert self._supervisor.stdin is not None
        with suppress(OSError):
            self._supervisor.stdin.close()
        self._supervisor.wait()

    def output_tail(self) -> str:
        """The last 50 lines of output."""
        return "\n".join(self._last_lines()[-TAIL_LINES:])[-TAIL_LENGTH:]

    def summarize_output(self) -> str:
        """The last exception in the output (``ValueError: ...``), or else the last line with a letter or digit.
        The last line alone would not do: torchrun prints a report of about fifty lines after an exception."""
        lines = [_CONTROL.sub("", line).strip() for line in self._last_lines()]
        raised = [match[1] for line in lines if (match := _RAISED.fullmatch(line))]
        candidates = raised or [line for line in lines if re.search(r"\w", line)]
        last = candidates[-1] if candidates else ""
        return last if len(last) <= SUMMARY_LENGTH else f"{last[: SUMMARY_LENGTH - 3]}..."

    def _last_lines(self) -> list[str]:
        return read_log_tail(self._log, TAIL_BYTES, self._log_start).splitlines()


def describe_status(status: int) -> str:
    """An exit status as the end of a sentence: ``was killed by SIGKILL``."""
    if status == CANNOT_START:
        return "cannot be started"
    if status > 128:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(status - 128).name}"
    return f"ended with status {status}"


def program_environment() -> dict[str, str]:
    """Environment of the program: this process's, without paths of this Python's installation in PYTHONPATH.
    Executors set these for workers, and the program may run under another Python."""
    prefixes = {Path(sys.prefix), Path(sys.base_prefix)}
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    outside = [entry for entry in entries if not any(Path(entry).is_relative_to(prefix) for prefix in prefixes)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(outside)}


def deadline(minutes: float | None) -> float:
    """The time on ``time.monotonic`` after ``minutes``; infinity for None."""
    return time.monotonic() + 60 * minutes if minutes is not None else float("inf")
