"""Hands what a logger is told to a server, in a thread of its own: a sweep never waits for a network.

A server that cannot be reached is said once, and tried again with growing pauses for as long as the sweep lasts.
Meanwhile what is to be shown waits in memory; points of training curves that find no room are dropped. Results are
on disk as well from the moment they are heard until nothing is left to be sent, so that none is lost with a driver
that is killed. At the end the courier waits for a while; what is still unsent stays in the study's folder, and the
next sweep sends it.
"""

from __future__ import annotations

import logging
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

MOST_POINTS = 20_000
"""Points of training curves that wait in memory at most: about 20 MB."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries."""
SHORT_WAIT = 2.0
"""Seconds of waiting at the end that need no word."""


class Runs(Protocol):
    """What shows runs somewhere. Called by one thread; each call may be repeated after it has raised.

    A ValueError or TypeError says that a call can never succeed: it is reported and left out. Whatever else is
    raised may pass, and the call is repeated.
    """

    def open(self, plan: SweepPlan) -> None: ...
    def progress(self, progress: Progress, when: float) -> None:
        """``when``: seconds since 1970."""

    def finished(self, result: RunResult) -> None: ...
    def close(self) -> None:
        """End what is open, and what was started."""


class _GaveUp(Exception):
    """The sweep has ended, and nothing can be sent."""


class BackgroundLogger(Logger):
    """A ``Logger`` in front of a :class:`Runs`.

    Args:
        name: The logger's, for messages and its files in the study's folder.
        runs: Used in the courier's thread only.
        folder: The study's.
        points: Of a run's training curve, at most.
        flush_timeout: Seconds to wait at the end.
    """

    def __init__(self, name: str, runs: Runs, folder: Path, *, points: int, flush_timeout: float) -> None:
        self._name = name
        self._runs = runs
        self._file = folder / "loggers" / f"{name}.unsent.{uuid4().hex[:8]}.jsonl"
        """Of this courier alone: other drivers of the study have their own."""
        self._thinning = Thinning(points)
        self._patience = flush_timeout
        self._errands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._unsent: set[tuple[str, int]] = set()
        self._keeping = threading.Lock()
        """Held while what is unsent, or its file, changes."""
        self._trouble = False
        self._closing = threading.Event()
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ the sweep's thread

    def started(self, plan: SweepPlan) -> None:
        self._thread = threading.Thread(target=self._work, args=(plan,), name=f"logger {self._name}", daemon=True)
        self._take_over()
        self._thread.start()

    def progress(self, progress: Progress) -> None:
        if self._thinning.wants(progress) and self._errands.qsize() < MOST_POINTS:
            self._errands.put(partial(self._runs.progress, progress, time.time()))

    def finished(self, result: RunResult) -> None:
        self._thinning.forget(result)
        self._send(result)

    def close(self) -> None:
        if self._thread is None:
            return
        self._errands.put(None)
        self._closing.set()
        self._wait_for(self._thread)
        self._leaving.set()
        self._thread.join(1.0)
        self._thread = None
        if left := len(self._unsent):
            count = f"{left} result{'s' if left > 1 else ''}"
            logger.warning("logger %s: %s not sent, kept in %s for the next run", self._name, count, self._file)

    def _wait_for(self, thread: threading.Thread) -> None:
        thread.join(min(SHORT_WAIT, self._patience))
        if thread.is_alive() and self._patience > SHORT_WAIT:
            text = "logger %s: the sweep is over, what has not been sent is waited for (%g s at most)"
            logger.warning(text, self._name, self._patience)
            thread.join(self._patience - SHORT_WAIT)

    def _send(self, result: RunResult) -> None:
        with self._keeping:
            self._unsent.add((result.id, result.attempt))
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{result.model_dump_json()}\n")
        self._errands.put(partial(self._deliver, result))

    def _take_over(self) -> None:
        """What other sweeps could not send. One that still lives may send it, too, which changes nothing there."""
        for number, file in enumerate(sorted(self._file.parent.glob(f"{self._name}.unsent*.jsonl"))):
            mine = self._file.with_suffix(f".{number}.jsonl")
            try:
                file.rename(mine)
            except OSError:  # another driver has just taken it, or, on Windows, is writing it
                continue
            for result in self._readable(mine):
                self._send(result)
            mine.unlink()

    def _readable(self, file: Path) -> list[RunResult]:
        """A line that is not whole was being written when its driver died."""
        results = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                results.append(RunResult.model_validate_json(line))
            except ValueError:
                logger.warning("logger %s: a line of %s cannot be read and is left out", self._name, file)
        return results

    # ------------------------------------------------------------------ the courier's thread

    def _work(self, plan: SweepPlan) -> None:
        try:
            if not self._insist(partial(self._runs.open, plan)):
                return
            while (errand := self._errands.get()) is not None:
                self._insist(errand)
            self._insist(self._runs.close)
        except _GaveUp:
            pass

    def _deliver(self, result: RunResult) -> None:
        try:
            self._runs.finished(result)
        except (ValueError, TypeError):
            self._done_with(result)
            raise
        self._done_with(result)

    def _done_with(self, result: RunResult) -> None:
        with self._keeping:
            self._unsent.discard((result.id, result.attempt))
            if not self._unsent:
                self._file.unlink(missing_ok=True)

    def _insist(self, errand: Callable[[], None]) -> bool:
        """Until it is done, or can never be, which gives False. Raises _GaveUp once nobody waits for it."""
        pause = 1.0
        while True:
            if self._leaving.is_set():
                raise _GaveUp
            try:
                errand()
            except (ValueError, TypeError) as error:
                logger.warning("logger %s cannot show something: %s", self._name, short(error))
                return False
            except Exception as error:
                self._wait(error, pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if self._trouble:
                self._trouble = False
                logger.warning("logger %s goes on", self._name)
            return True

    def _wait(self, error: Exception, seconds: float) -> None:
        if not self._trouble:
            self._trouble = True
            text = "logger %s waits and tries again; the sweep goes on: %s"
            logger.warning(text, self._name, short(error))
        if not self._closing.is_set():
            self._closing.wait(seconds)
        elif self._leaving.wait(1.0):
            raise _GaveUp


def short(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
