"""A logger that sends events to a server in a background thread, so that a sweep never waits for a network.

If the server does not answer, the logger warns once and retries with growing pauses during the sweep. Events wait
in memory; points of training curves beyond :data:`MAX_POINTS` are dropped. Results are also on disk from their
arrival until all are sent, so a killed driver loses none. At the end of the sweep the logger waits for some
seconds. Unsent results then stay in the study's folder, and the next sweep sends them.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol
from uuid import uuid4

from flops_fit_core import Progress, RunResult, SweepPlan
from flops_fit_core.plugins import Logger
from flops_fit_loggers.values import Thinning

logger = logging.getLogger("flops_fit")

MAX_POINTS = 20_000
"""Points of training curves that wait in memory, about 20 MB."""
MAX_PAUSE = 60.0
"""Seconds between two attempts."""
SILENT_WAIT = 2.0
"""Seconds to wait at the end of a sweep before a message."""


class Runs(Protocol):
    """Sends runs to a server. Used by one thread. A call that has raised may be repeated.

    ValueError and TypeError mean that a call can never succeed: it is reported and skipped. After any other
    exception, the call is repeated.
    """

    def open(self, plan: SweepPlan) -> None: ...
    def progress(self, progress: Progress, timestamp: float) -> None:
        """``timestamp``: Unix seconds."""

    def finished(self, result: RunResult) -> None: ...
    def close(self) -> None:
        """End all open runs and all processes that were started."""


class _Abandoned(Exception):
    """The sweep has ended before everything was sent."""


class BackgroundLogger(Logger):
    """A logger that forwards events to a :class:`Runs` in a background thread.

    Args:
        name: Name of the logger, for messages and for its files in the study's folder.
        runs: Used in the background thread only.
        folder: The study's folder.
        points: Maximum number of points of a run's training curve.
        flush_timeout: Seconds to wait at the end of a sweep.
    """

    def __init__(self, name: str, runs: Runs, folder: Path, *, points: int, flush_timeout: float) -> None:
        self._name = name
        self._runs = runs
        self._file = folder / "loggers" / f"{name}.unsent.{uuid4().hex[:8]}.jsonl"
        """Unsent results of this object only. Other drivers of the study have other files."""
        self._thinning = Thinning(points)
        self._flush_timeout = flush_timeout
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        """Calls of ``runs``; None ends the background thread."""
        self._unsent: set[tuple[str, int]] = set()
        """(run id, attempt) of unsent results."""
        self._lock = threading.Lock()
        """Held while ``_unsent`` and the file change."""
        self._is_failing = False
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ the sweep's thread

    def started(self, plan: SweepPlan) -> None:
        self._thread = threading.Thread(target=self._work, args=(plan,), name=f"logger {self._name}", daemon=True)
        self._take_over_files()
        self._thread.start()

    def progress(self, progress: Progress) -> None:
        if self._thinning.selects(progress) and self._calls.qsize() < MAX_POINTS:
            self._calls.put(partial(self._runs.progress, progress, time.time()))

    def finished(self, result: RunResult) -> None:
        self._thinning.remove(result)
        self._enqueue(result)

    def close(self) -> None:
        if self._thread is None:
            return
        self._calls.put(None)
        self._closing.set()
        self._wait_for(self._thread)
        self._abandoned.set()
        self._thread.join(1.0)
        self._thread = None
        if num_unsent := len(self._unsent):
            count = f"{num_unsent} result{'s' if num_unsent > 1 else ''}"
            logger.warning("logger %s: %s not sent, kept in %s for the next run", self._name, count, self._file)

    def _wait_for(self, thread: threading.Thread) -> None:
        thread.join(min(SILENT_WAIT, self._flush_timeout))
        if thread.is_alive() and self._flush_timeout > SILENT_WAIT:
            message = "logger %s: the sweep has ended, waiting up to %g s to send the rest"
            logger.warning(message, self._name, self._flush_timeout)
            thread.join(self._flush_timeout - SILENT_WAIT)

    def _enqueue(self, result: RunResult) -> None:
        with self._lock:
            self._unsent.add((result.id, result.attempt))
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{result.model_dump_json()}\n")
        self._calls.put(partial(self._send, result))

    def _take_over_files(self) -> None:
        """Send the unsent results of other sweeps. A sweep that is still running may also send them: sending a
        result twice has no effect."""
        for number, file in enumerate(sorted(self._file.parent.glob(f"{self._name}.unsent*.jsonl"))):
            renamed = self._file.with_suffix(f".{number}.jsonl")
            try:
                file.rename(renamed)
            except OSError:  # another driver has renamed it, or, on Windows, is writing it
                continue
            for result in self._read_results(renamed):
                self._enqueue(result)
            renamed.unlink()

    def _read_results(self, file: Path) -> list[RunResult]:
        """Results in the file, without incomplete lines of a killed driver."""
        results = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                results.append(RunResult.model_validate_json(line))
            except ValueError:
                logger.warning("logger %s: skipped an unreadable line of %s", self._name, file)
        return results

    # ------------------------------------------------------------------ the background thread

    def _work(self, plan: SweepPlan) -> None:
        try:
            if not self._retry(partial(self._runs.open, plan)):
                return
            while (call := self._calls.get()) is not None:
                self._retry(call)
            self._retry(self._runs.close)
        except _Abandoned:
            pass

    def _send(self, result: RunResult) -> None:
        try:
            self._runs.finished(result)
        except (ValueError, TypeError):
            self._mark_sent(result)
            raise
        self._mark_sent(result)

    def _mark_sent(self, result: RunResult) -> None:
        with self._lock:
            self._unsent.discard((result.id, result.attempt))
            if not self._unsent:
                self._file.unlink(missing_ok=True)

    def _retry(self, call: Callable[[], None]) -> bool:
        """Repeat a call until it succeeds. Returns False if it can never succeed. Raises _Abandoned once
        :meth:`close` has stopped waiting."""
        pause = 1.0
        while True:
            if self._abandoned.is_set():
                raise _Abandoned
            try:
                call()
            except (ValueError, TypeError) as error:
                logger.warning("logger %s: a call cannot succeed and is skipped: %s", self._name, one_line(error))
                return False
            except Exception as error:
                self._wait(error, pause)
                pause = min(2 * pause, MAX_PAUSE)
                continue
            if self._is_failing:
                self._is_failing = False
                logger.warning("logger %s: the server answers again", self._name)
            return True

    def _wait(self, error: Exception, seconds: float) -> None:
        if not self._is_failing:
            self._is_failing = True
            message = "logger %s: the server does not answer, will retry; the sweep continues: %s"
            logger.warning(message, self._name, one_line(error))
        if not self._closing.is_set():
            self._closing.wait(seconds)
        elif self._abandoned.wait(1.0):
            raise _Abandoned


def one_line(error: Exception) -> str:
    """The error on one line, at most 300 characters, without the user and password of a URL."""
    text = re.sub(r"://[^/\s@]*@", "://***@", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:300]}"
