"""The time that a sweep still needs, from timings of a few sizes and from its finished runs.

A model of the time of a run (:mod:`flops_fit_core.study.run_times`) is fitted to finished runs, to the speed of
runs in training, and to the timings that ``flops-fit plan`` measures. The timings determine how the time depends
on the size, finished runs its scale. Later runs weigh more, because the load of a machine changes. The remaining
jobs are then assigned to the workers, longest first, as the sweep does it.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flops_fit_core.records import Job, Progress, RunResult, RunSpec, SweepPlan, Trajectory
from flops_fit_core.study.run_times import RunTimes, Sample, evaluation_features, training_features

GAP_SECONDS = 0.2
"""Between two runs of a worker, until finished runs show it."""
TIMING_WEIGHT = 0.5
"""Weight of the timing of a size; the latest finished run has 1."""
MEMORY = 0.5
"""The weight of a run is 1/e if this share of all training time came after it."""


@dataclass(frozen=True)
class TimeEstimate:
    """Time of the remaining runs, and the share of the sweep that is done."""

    seconds: float
    """Wall time until the last run ends."""
    share_done: float
    """Time that was trained / estimated training time of all runs."""


class TimeLeft:
    """Estimates the time that a plan still needs.

    Args:
        plan: All runs.
        timings: Run id -> training tokens per second of a run alone on its device, for a few sizes.
    """

    def __init__(self, plan: SweepPlan, timings: Mapping[str, float] | None = None) -> None:
        self._plan = plan
        self._runs = {run.id: run for run in plan.runs}
        self._timings = {run: speed for run, speed in (timings or {}).items() if run in self._runs and speed > 0}

    def estimate(
        self,
        results: Sequence[RunResult],
        done: Collection[str],
        running: Iterable[Progress],
        workers: int | None,
    ) -> TimeEstimate | None:
        """The time left; None before anything was measured.

        Args:
            results: Results of runs of the plan, in any order.
            done: Ids of the runs that are not trained any more: completed, diverged, or failed in this sweep.
            running: The latest progress of the runs in training.
            workers: Jobs that are trained at the same time. None if unknown: the number of jobs in training.
        """
        active = {item.run: item for item in running if item.run in self._runs and item.run not in done}
        missing = {run.id for run in self._plan.runs if run.id not in done}
        if not missing:
            return TimeEstimate(0.0, 1.0)
        model = self._fit(results, active.values())
        if model is None:
            return None
        trunks = _trained_trunks(self._plan.trajectories, done)
        busy: list[float] = []
        waiting: list[float] = []
        for job in self._plan.jobs(missing):
            seconds = _job_seconds(model, job, active, trunks)
            (busy if any(run.id in active for run in job.runs) else waiting).append(seconds)
        slots = max(1, len(busy) if workers is None else workers)
        left = _schedule(busy, waiting, slots, _gap(results))
        spent = math.fsum(result.seconds for result in results if result.id in done)
        work = math.fsum(busy) + math.fsum(waiting)
        trained = math.fsum(_trained_seconds(item) for item in active.values())
        total = spent + trained + work
        return TimeEstimate(left, (spent + trained) / total if total > 0 else 0.0)

    def _fit(self, results: Sequence[RunResult], running: Iterable[Progress]) -> RunTimes | None:
        finished = [result for result in results if result.is_finished and result.seconds > 0 and result.tokens]
        samples = [*_samples_of_results(finished), *self._samples_of_running(running)]
        timed = [self._sample_of_timing(run, speed) for run, speed in self._timings.items()]
        if not samples and not timed:
            return None
        eval_tokens = statistics.fmean(map(_eval_tokens, finished)) if finished else 0.0
        if samples and timed:
            # A run alone is faster than a run next to others, so only the ratios of the timings count.
            scale = math.exp(RunTimes(timed, eval_tokens).mean_log_ratio(samples))
            timed = [replace(item, seconds=item.seconds * scale) for item in timed]
        model = RunTimes([*samples, *timed], eval_tokens)
        model.correct_sizes(samples)
        return model

    def _samples_of_running(self, running: Iterable[Progress]) -> Iterable[Sample]:
        for item in running:
            if item.tokens_per_second and item.step:
                run = self._runs[item.run]
                weight = math.sqrt(min(1.0, item.step / item.steps))
                yield Sample(training_features(run), run.tokens / item.tokens_per_second, weight, run.params)

    def _sample_of_timing(self, run_id: str, tokens_per_second: float) -> Sample:
        run = self._runs[run_id]
        return Sample(training_features(run), run.tokens / tokens_per_second, TIMING_WEIGHT, run.params)


def _job_seconds(model: RunTimes, job: Job, running: Mapping[str, Progress], trunks: Mapping[str, int]) -> float:
    """Seconds that a job still takes. ``trunks``: steps of shared stable phases that are trained already."""
    active = sum(run.id in running for run in job.runs)
    seconds = 0.0
    for trajectory in job.trajectories:
        position = trunks.get(trajectory.id, 0)
        for run in trajectory.runs:
            if run.id in running:
                seconds += _running_seconds(model, run, running[run.id], active)
            else:
                seconds += model.training_seconds(run, max(0, run.steps - position))
            seconds += model.evaluation_seconds(run)
            position = max(position, run.branch_step or 0)
    return seconds


def _running_seconds(model: RunTimes, run: RunSpec, progress: Progress, active: int) -> float:
    """Time of the remaining steps. The ``active`` runs of a job in training share a worker."""
    steps = max(0, run.steps - progress.step)
    if progress.tokens_per_second:
        return steps * run.tokens_per_step / progress.tokens_per_second / active
    return model.training_seconds(run, steps)


def _trained_seconds(progress: Progress) -> float:
    speed = progress.tokens_per_second
    return progress.tokens / speed if speed else 0.0


def _eval_tokens(result: RunResult) -> int:
    return result.eval_tokens * max(1, len(result.curve))


def _samples_of_results(finished: Sequence[RunResult]) -> Iterable[Sample]:
    total = math.fsum(result.seconds for result in finished)
    later = 0.0
    for result in sorted(finished, key=lambda result: result.finished, reverse=True):
        weight = math.exp(-later / (MEMORY * total))
        later += result.seconds
        trained = result.tokens if result.trained_tokens is None else result.trained_tokens
        training = training_features(result.run, trained / result.run.tokens)
        evaluation = evaluation_features(result.run, _eval_tokens(result))
        features = [a + b for a, b in zip(training, evaluation, strict=True)]
        yield Sample(features, result.seconds, weight, result.run.params)


def _gap(results: Sequence[RunResult]) -> float:
    """Median time between two runs of a worker: loading data, building the model, waiting in a queue.

    The worker of a run is unknown: it is taken for the worker that became free last before the run started.
    """
    ends = sorted(result.finished.timestamp() for result in results if result.seconds > 0)
    starts = sorted(result.finished.timestamp() - result.seconds for result in results if result.seconds > 0)
    gaps, free, next_end = [], [], 0
    for start in starts:
        while next_end < len(ends) and ends[next_end] <= start:
            free.append(ends[next_end])
            next_end += 1
        if free:
            gaps.append(start - free.pop())
    return statistics.median(gaps) if len(gaps) >= 3 else GAP_SECONDS


def _trained_trunks(trajectories: Iterable[Trajectory], done: Collection[str]) -> dict[str, int]:
    """Trajectory id -> steps of its shared stable phase that finished runs have trained."""
    return {
        item.id: max((run.branch_step or 0 for run in item.runs if run.id in done), default=0)
        for item in trajectories
    }


def _schedule(busy: Sequence[float], waiting: Sequence[float], workers: int, gap: float) -> float:
    """Seconds until the last job ends, if each worker that becomes free takes the next job."""
    free = [*busy, *[0.0] * (workers - len(busy))]
    heapq.heapify(free)
    for seconds in waiting:
        heapq.heapreplace(free, free[0] + gap + seconds)
    return max(free)
