"""One program as the trainer ``command`` sees it."""

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
from flops_fit_core.plugins import read_log_tail
from flops_fit_trainers.supervise import CANNOT_START

SUPERVISOR = Path(__file__).with_name("supervise.py")
TAIL_LINES = 50
TAIL_LENGTH = 16_000
TAIL_BYTES = 64_000
GIST_LENGTH = 300
_RAISED = re.compile(r"(?:\[\w+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt): .+)")
"""The end of a traceback; torchrun may write ``[rank3]:`` before it."""
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]")
"""Colours and the like."""


class Program:
    """Runs from ``with`` on, under a supervisor that ends it when this process closes it or dies, and that waits
    for an earlier program with the same log to end. What it prints goes to the file ``log``, after what is there.

    Raises ConfigError for a working directory that is not there.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], directory: Path, log: Path, grace_period: float
    ) -> None:
        if not directory.is_dir():
            raise ConfigError(f"trainer.directory: there is no folder {directory}")
        self._log = log
        self._grace_period = grace_period
        with log.open("ab") as file:
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
        """Its exit status; None while it runs, after so many seconds."""
        try:
            return self._supervisor.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """SIGTERM for its group, and SIGKILL for all that came of it when it has ended or the grace is over.
        Returns then. Idempotent."""
        assert self._supervisor.stdin is not None
        with suppress(OSError):
            self._supervisor.stdin.close()
        self._supervisor.wait()

    def last_words(self) -> str:
        """The last 50 lines that it printed; empty where there are none."""
        return "\n".join(self._last_lines()[-TAIL_LINES:])[-TAIL_LENGTH:]

    def gist(self) -> str:
        """What a Python program raised last (``ValueError: ...``), among the last that it printed; of another its
        last line that has a word in it. torchrun ends with a report of some fifty lines that says neither."""
        lines = [_CONTROL.sub("", line).strip() for line in self._last_lines()]
        raised = [found[1] for line in lines if (found := _RAISED.fullmatch(line))]
        said = raised or [line for line in lines if re.search(r"\w", line)]
        last = said[-1] if said else ""
        return last if len(last) <= GIST_LENGTH else f"{last[: GIST_LENGTH - 3]}..."

    def _last_lines(self) -> list[str]:
        return read_log_tail(self._log, TAIL_BYTES, self._log_start).splitlines()


def described(status: int) -> str:
    """An exit status in words."""
    if status == CANNOT_START:
        return "cannot be started"
    if status > 128:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(status - 128).name}"
    return f"ended with status {status}"


def own_environment() -> dict[str, str]:
    """The environment of this process without the import path of its own installation, which a worker has been
    given: the program may run under another Python."""
    prefixes = {Path(sys.prefix), Path(sys.base_prefix)}
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [one for one in entries if one and not any(Path(one).is_relative_to(prefix) for prefix in prefixes)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(kept)}


def deadline(minutes: float | None) -> float:
    """A moment of ``time.monotonic``."""
    return time.monotonic() + 60 * minutes if minutes is not None else float("inf")
