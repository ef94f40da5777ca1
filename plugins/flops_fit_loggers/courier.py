"""Hands what a logger is told to a server, in a thread of its own: a sweep never waits for a network.

A server that cannot be reached is said once, and tried again with growing pauses for as long as the sweep lasts.
Meanwhile what is to be shown waits in memory, and results on disk as well; points of training curves that find no
room are dropped. At the end the courier waits for a while; results that are still unsent stay in the study's
folder, and the next sweep sends them.
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

from flops_fit_core import Progress, RunResult, SweepPlan
from flops_fit_loggers.values import Thinning

logger = logging.getLogger("flops_fit")

MOST_POINTS = 20_000
"""Points of training curves that wait in memory at most: about 20 MB."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries."""


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


class Courier:
    """A ``Logger`` in front of a :class:`Runs`.

    Args:
        name: The logger's, for messages and its file in the study's folder.
        runs: Used in the courier's thread only.
        folder: The study's.
        points: Of a run's training curve, at most.
        patience: Seconds to wait at the end.
    """

    def __init__(self, name: str, runs: Runs, folder: Path, *, points: int, patience: float) -> None:
        self._name = name
        self._runs = runs
        self._file = folder / "loggers" / f"{name}.unsent.jsonl"
        self._thinning = Thinning(points)
        self._patience = patience
        self._errands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._unsent: dict[tuple[str, int], RunResult] = {}
        self._trouble = threading.Event()
        self._closing = threading.Event()
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ the sweep's thread

    def started(self, plan: SweepPlan) -> None:
        self._thread = threading.Thread(target=self._work, args=(plan,), name=f"logger {self._name}", daemon=True)
        for result in self._kept():
            self._send(result)
        self._thread.start()

    def progress(self, progress: Progress) -> None:
        if self._thinning.wants(progress) and self._errands.qsize() < MOST_POINTS:
            self._errands.put(partial(self._runs.progress, progress, time.time()))

    def finished(self, result: RunResult) -> None:
        self._thinning.forget(result)
        if self._trouble.is_set():
            self._keep([result], "a")
        self._send(result)

    def close(self) -> None:
        if self._thread is None:
            return
        self._errands.put(None)
        self._closing.set()
        self._thread.join(self._patience)
        self._leaving.set()
        self._thread.join(1.0)
        self._thread = None
        if self._unsent:
            left = [*self._unsent.values()]
            self._keep(left, "w")
            count = f"{len(left)} result{'s' if len(left) > 1 else ''}"
            logger.warning("logger %s: %s not sent, kept in %s for the next run", self._name, count, self._file)
        else:
            self._file.unlink(missing_ok=True)

    def _send(self, result: RunResult) -> None:
        self._unsent[result.id, result.attempt] = result
        self._errands.put(partial(self._deliver, result))

    def _keep(self, results: list[RunResult], mode: str) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open(mode, encoding="utf-8") as file:
            file.writelines(f"{result.model_dump_json()}\n" for result in results)

    def _kept(self) -> list[RunResult]:
        """What earlier sweeps could not send. A line that is not whole was being written when its driver died."""
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        results = []
        for line in lines:
            try:
                results.append(RunResult.model_validate_json(line))
            except ValueError:
                logger.warning("logger %s: a line of %s cannot be read and is left out", self._name, self._file)
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
            self._unsent.pop((result.id, result.attempt), None)
            raise
        self._unsent.pop((result.id, result.attempt), None)

    def _insist(self, errand: Callable[[], None]) -> bool:
        """Until it is done, or can never be, which gives False. Raises _GaveUp once nobody waits for it."""
        pause = 1.0
        while True:
            try:
                errand()
            except (ValueError, TypeError) as error:
                logger.warning("logger %s cannot show something: %s", self._name, short(error))
                return False
            except Exception as error:
                self._wait(error, pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if self._trouble.is_set():
                self._trouble.clear()
                logger.warning("logger %s goes on", self._name)
            return True

    def _wait(self, error: Exception, seconds: float) -> None:
        if not self._trouble.is_set():
            self._trouble.set()
            text = "logger %s waits and tries again; the sweep goes on: %s"
            logger.warning(text, self._name, short(error))
        if not self._closing.is_set():
            self._closing.wait(seconds)
        elif self._leaving.wait(1.0):
            raise _GaveUp


def short(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
