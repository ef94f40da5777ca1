"""Hooks that are called when something happens in a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flops_fit_core.plugins.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from flops_fit_core.records import RunResult, RunSpec, SweepPlan


@hookspec
def flops_fit_run_finished(run: RunSpec, result: RunResult) -> None:
    """Observe each result, after it has been stored.

    ::

        from flops_fit_core.plugins import hookimpl

        @hookimpl
        def flops_fit_run_finished(run, result):
            print(run.id, result.status, result.loss)
    """


@hookspec
def flops_fit_sweep_finished(plan: SweepPlan, results: Sequence[RunResult]) -> None:
    """Observe the end of a sweep, with the latest result of every run of the plan.

    ::

        from flops_fit_core.plugins import hookimpl

        @hookimpl
        def flops_fit_sweep_finished(plan, results):
            print(plan.name, sum(result.status == "completed" for result in results))
    """
