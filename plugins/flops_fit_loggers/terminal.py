"""Lines on standard error: standard output is for what a command was asked for."""

from __future__ import annotations

import sys
import time
from datetime import datetime

from flops_fit_core import Progress, RunResult, RunSpec, SweepPlan
from flops_fit_core.plugins import Logger


class TerminalLogger(Logger):
    """Prints one line per event.

    Args:
        every: Seconds between two lines on the progress of one run.
        time: Whether a line begins with date and time.
    """

    def __init__(self, *, every: float, time: bool) -> None:
        self._every = every
        self._time = time
        self._plan: SweepPlan | None = None
        self._runs: dict[str, RunSpec] = {}
        self._said: dict[tuple[str, int], float] = {}
        """When something was last said of a run that trains."""

    def started(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._runs = {run.id: run for run in plan.runs}
        n, c = plan.params_name, plan.flops_name
        self._say(f"sweep {plan.name}: {len(plan.runs)} runs, {plan.flops:.3g} FLOPs. N: {n}. C: {c}")

    def progress(self, progress: Progress) -> None:
        run = self._runs.get(progress.run)
        if run is None:
            return
        key, now = (progress.run, progress.attempt), time.monotonic()
        if key not in self._said:
            self._say(f"{_who(run, progress.attempt)} trains: {self._what(run)}, {_steps(progress)}")
        elif now - self._said[key] >= self._every:
            self._say(f"{_who(run, progress.attempt)}: {_steps(progress)}")
        else:
            return
        self._said[key] = now

    def finished(self, result: RunResult) -> None:
        self._said.pop((result.id, result.attempt), None)
        loss = f", loss {result.loss:.4f}" if result.loss is not None else ""
        seen = "" if result.tokens == result.run.tokens else f", {_count(result.tokens)} {self._unit} seen"
        error = f": {_one_line(result)}" if result.error is not None else ""
        what = f"{self._what(result.run)}{seen}{loss}, {result.seconds:.1f} s{error}"
        self._say(f"{_who(result.run, result.attempt)} {result.status}: {what}")

    @property
    def _unit(self) -> str:
        return self._plan.unit if self._plan else "tokens"

    def _what(self, run: RunSpec) -> str:
        return f"N {_count(run.params)}, D {_count(run.tokens)} {self._unit}, C {run.flops:.3g}"

    def _say(self, line: str) -> None:
        # Looked up at every line: while a live display is shown, it stands in for sys.stderr.
        now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} " if self._time else ""
        sys.stderr.write(f"{now}{line}\n")
        sys.stderr.flush()


def _who(run: RunSpec, attempt: int) -> str:
    again = f", attempt {attempt}" if attempt > 1 else ""
    return f"run {run.id[:8]} (budget {run.budget:.3g}, size {run.size}, seed {run.seed}{again})"


def _steps(progress: Progress) -> str:
    parts = [f"step {progress.step} of {progress.steps}"]
    if progress.loss is not None:
        parts.append(f"training loss {progress.loss:.4f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{_count(progress.tokens_per_second)}/s")
    return ", ".join(parts)


def _one_line(result: RunResult) -> str:
    return result.error.line if result.error else ""


def _count(value: float) -> str:
    """Three digits and a unit: ``950``, ``36.9K``, ``1.23B``."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"
