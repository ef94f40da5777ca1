"""Print lines on standard error. Standard output is for the results of commands."""

from __future__ import annotations

import sys
import time
from datetime import datetime

from flops_fit_core import Progress, RunResult, RunSpec, SweepPlan
from flops_fit_core.plugins import Logger, escape_controls


class TerminalLogger(Logger):
    """Prints one line per event.

    Args:
        every: Seconds between two progress lines of a run.
        time: Start each line with date and time.
    """

    def __init__(self, *, every: float, time: bool) -> None:
        self._every = every
        self._time = time
        self._plan: SweepPlan | None = None
        self._runs: dict[str, RunSpec] = {}
        self._last_line: dict[tuple[str, int], float] = {}
        """(run id, attempt) -> monotonic time of its last line."""

    def started(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._runs = {run.id: run for run in plan.runs}
        n, c = plan.params_name, plan.flops_name
        self._print(f"sweep {plan.name}: {len(plan.runs)} runs, {plan.flops:.3g} FLOPs. N: {n}. C: {c}")

    def progress(self, progress: Progress) -> None:
        run = self._runs.get(progress.run)
        if run is None:
            return
        key, now = (progress.run, progress.attempt), time.monotonic()
        if key not in self._last_line:
            self._print(f"{_label(run, progress.attempt)} trains: {self._sizes(run)}, {_steps(progress)}")
        elif now - self._last_line[key] >= self._every:
            self._print(f"{_label(run, progress.attempt)}: {_steps(progress)}")
        else:
            return
        self._last_line[key] = now

    def finished(self, result: RunResult) -> None:
        self._last_line.pop((result.id, result.attempt), None)
        loss = f", loss {result.loss:.4f}" if result.loss is not None else ""
        seen = "" if result.tokens == result.run.tokens else f", {_count(result.tokens)} {self._unit} seen"
        error = f": {result.error.line}" if result.error is not None else ""
        summary = f"{self._sizes(result.run)}{seen}{loss}, {result.seconds:.1f} s{error}"
        self._print(f"{_label(result.run, result.attempt)} {result.status}: {summary}")

    @property
    def _unit(self) -> str:
        return self._plan.unit if self._plan else "tokens"

    def _sizes(self, run: RunSpec) -> str:
        return f"N {_count(run.params)}, D {_count(run.tokens)} {self._unit}, C {run.flops:.3g}"

    def _print(self, line: str) -> None:
        # Read sys.stderr for every line: a live display replaces it temporarily.
        now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} " if self._time else ""
        sys.stderr.write(f"{now}{escape_controls(line)}\n")
        sys.stderr.flush()


def _label(run: RunSpec, attempt: int) -> str:
    retry = f", attempt {attempt}" if attempt > 1 else ""
    return f"run {run.id[:8]} (budget {run.budget:.3g}, size {run.size}, seed {run.seed}{retry})"


def _steps(progress: Progress) -> str:
    parts = [f"step {progress.step} of {progress.steps}"]
    if progress.loss is not None:
        parts.append(f"training loss {progress.loss:.4f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{_count(progress.tokens_per_second)}/s")
    return ", ".join(parts)


def _count(value: float) -> str:
    """A number with three digits and a suffix: ``950``, ``36.9K``, ``1.23B``."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"
