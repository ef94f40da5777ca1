"""The time that a study's missing runs need on this machine, before and between sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import RunResult, SweepPlan
from flops_fit_core.study.settings import StudySettings
from flops_fit_core.study.time_left import TimeLeft
from flops_fit_core.study.train import count_parallel_jobs


class PlannedTime:
    """Estimates the wall time of missing runs, from finished runs or from timings, which it takes once.

    Args:
        plan: All runs.
        settings: The study's experiment, whose executor gives the number of runs at the same time.
        registry: The plugins that build the models.
    """

    def __init__(self, plan: SweepPlan, settings: StudySettings, registry: Registry) -> None:
        self._plan = plan
        self._settings = settings
        self._registry = registry
        self.timings: dict[str, float] | None = None
        """Run id -> training tokens per second, for a few sizes; None until they are measured."""

    def seconds(self, results: Sequence[RunResult]) -> float | None:
        """Estimated wall time of the runs without a finished result; None if unknown."""
        workers = count_parallel_jobs(self._settings.load(), self._plan)
        done = {result.id for result in results if result.is_finished}
        missing = [run for run in self._plan.runs if run.id not in done]
        if workers is None or not missing:
            return 0.0 if not missing else None
        timings: dict[str, float] = {}
        if not any(result.seconds > 0 for result in results):
            if self.timings is None:
                from flops_fit_core.training import measure_timings

                self.timings = measure_timings(self._plan, self._registry, missing)
            timings = self.timings
        estimate = TimeLeft(self._plan, timings).estimate(results, done, (), workers)
        return None if estimate is None else estimate.seconds
