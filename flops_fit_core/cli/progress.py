"""Show the progress of a sweep: a bar per run in training, and a bar for all FLOPs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flops_fit_core.plugins.protocols import Logger
from flops_fit_core.plugins.utilities import escape_controls
from flops_fit_core.records import Progress as RunProgress
from flops_fit_core.records import RunResult, SweepPlan
from flops_fit_core.report import numbers


class SweepProgress(Logger):
    """Shows bars in a terminal; if the output is no terminal, a line per finished run.

    Args:
        console: The console to print to.
        done: Ids of runs that were finished before the sweep.
    """

    def __init__(self, console: Console, done: set[str]) -> None:
        self._console = console
        self._done = done
        self._bars: Progress | None = None
        self._total: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}
        self._plan: SweepPlan | None = None
        self._partial: dict[str, float] = {}
        self._first: dict[str, int] = {}
        self._finished = 0.0

    def started(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._runs = {run.id: run for run in plan.runs}
        remaining = plan.flops_left(self._done)
        self._count, self._number = len(plan.runs), len(self._done)
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[details]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
                transient=True,
            )
            self._total = self._bars.add_task(self._headline(), total=max(remaining, 1.0), details="")
            self._bars.start()

    def progress(self, progress: RunProgress) -> None:
        run = self._runs.get(progress.run)
        if self._bars is None or run is None:
            return
        if progress.run not in self._tasks:
            name = escape_controls(f"  C {run.budget:.2g}, {run.size}")
            self._tasks[progress.run] = self._bars.add_task(name, total=progress.steps, details="")
        details = f"loss {progress.loss:.3f}" if progress.loss is not None else "loss -"
        if progress.tokens_per_second is not None:
            details += f", {numbers.count(progress.tokens_per_second)} tokens/s"
        self._bars.update(self._tasks[progress.run], completed=progress.step, details=details)
        # Steps before the first report belong to an earlier sweep or to another run of the same trunk.
        steps = progress.step - self._first.setdefault(progress.run, progress.step)
        self._partial[progress.run] = run.flops * steps / progress.steps
        self._update_total()

    def finished(self, result: RunResult) -> None:
        self._number += 1
        self._finished += result.flops_spent
        self._partial.pop(result.id, None)
        if self._bars is not None and (task := self._tasks.pop(result.id, None)) is not None:
            self._bars.remove_task(task)
        self._update_total()
        line = escape_controls(self._line(result))
        self._console.print(line, markup=False, emoji=False, style=_STYLES.get(result.status, ""))

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()

    def _update_total(self) -> None:
        if self._bars is not None and self._total is not None:
            completed = self._finished + sum(self._partial.values())
            self._bars.update(self._total, completed=completed, description=self._headline())

    def _headline(self) -> str:
        return f"{self._number} of {self._count} runs"

    def _line(self, result: RunResult) -> str:
        run = result.run
        parts: list[Any] = [
            f"[{self._number}/{self._count}]",
            f"C {run.budget:.3g}  size {run.size}  N {numbers.count(run.params)}  D {numbers.count(run.tokens)}",
        ]
        if result.loss is not None:
            bits = f" ({result.bits_per_byte:.4f} bits/byte)" if result.bits_per_byte is not None else ""
            parts.append(f"loss {result.loss:.4f}{bits}")
        else:
            parts.append(result.status.upper())
        if result.error is not None:
            parts.append(result.error.line)
        parts.append(numbers.duration(result.seconds))
        return "  ".join(parts)


_STYLES = {"failed": "red", "diverged": "yellow"}
