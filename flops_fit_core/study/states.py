"""The states of a plan's runs."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_core.records import RunResult, SweepPlan


def count_states(plan: SweepPlan, results: Sequence[RunResult]) -> dict[str, int]:
    """Number of runs per state: ``waiting``, or the status of the latest result."""
    latest = {result.id: result.status for result in results}
    states: dict[str, int] = {"waiting": 0, "completed": 0, "diverged": 0, "failed": 0}
    for run in plan.runs:
        states[latest.get(run.id, "waiting")] += 1
    return states


def states_by_run(plan: SweepPlan, results: Sequence[RunResult]) -> dict[str, str]:
    """Run id -> ``waiting``, ``completed``, ``diverged`` or ``failed``."""
    latest = {result.id: str(result.status) for result in results}
    return {run.id: latest.get(run.id, "waiting") for run in plan.runs}
