"""How far a sweep is, and what a law still needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flops_fit_core import numbers
from flops_fit_core.records import RunResult, RunSpec, SweepPlan


@dataclass(frozen=True)
class SweepProgress:
    """The state of a sweep at its last result."""

    total: int
    completed: int
    failed: int
    """Failed or diverged runs."""
    planned: int
    """Runs without a result."""
    seconds_left: float | None
    """Estimated training time of the runs without a result, summed over runs; None if it cannot be estimated."""

    @property
    def sentence(self) -> str:
        """The progress in words."""
        parts = [f"{self.completed} of {self.total} runs completed"]
        if self.failed:
            parts.append(f"{self.failed} failed or diverged")
        if self.planned:
            left = ""
            if self.seconds_left is not None:
                left = f", about {numbers.duration(self.seconds_left)} of training"
            parts.append(f"{self.planned} to train{left}")
        return "; ".join(parts) + "."


def sweep_progress(plan: SweepPlan | None, results: Sequence[RunResult]) -> SweepProgress | None:
    """The progress of a plan; None without one."""
    if plan is None:
        return None
    with_result = {result.id for result in results}
    missing = [run for run in plan.runs if run.id not in with_result]
    completed = sum(result.status == "completed" for result in results)
    return SweepProgress(
        total=len(plan.runs),
        completed=completed,
        failed=len(results) - completed,
        planned=len(missing),
        seconds_left=_seconds(missing, results) if missing else None,
    )


def _seconds(missing: Sequence[RunSpec], results: Sequence[RunResult]) -> float | None:
    """Each missing run takes as long per FLOP as the trained run with the nearest number of parameters."""
    speeds = [
        (math.log(result.run.params), result.seconds / result.flops_spent)
        for result in results
        if result.status == "completed" and not result.synthetic and result.seconds > 0 and result.flops_spent > 0
    ]
    if not speeds:
        return None
    total = 0.0
    for run in missing:
        ln_params = math.log(run.params)
        total += run.flops * min(speeds, key=lambda speed: abs(speed[0] - ln_params))[1]
    return total
