"""The jobs that a plan still needs, by the results in its store, and the error of a job without a result."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from flops_fit_core.config import Experiment
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.plugins.protocols.stores import latest_attempts
from flops_fit_core.records import Job, RunError, RunResult, RunSpec, SweepPlan


def missing_jobs(
    plan: SweepPlan,
    store: ResultStore,
    *,
    only: Collection[str] | None = None,
    retry_failed: bool = True,
    retrain: bool = False,
) -> list[Job]:
    """Jobs for the runs without a finished result, with the number of each run's next attempt.

    The arguments are those of :class:`~flops_fit_core.study.sweep.Sweep`.
    """
    stored = list(store.all_attempts())
    latest = {result.id: result for result in latest_attempts(stored)}
    numbers: dict[str, int] = {}
    for attempt in stored:
        numbers[attempt.id] = max(attempt.attempt, numbers.get(attempt.id, 0))
    missing = set()
    for run in plan.runs:
        result = latest.get(run.id)
        needed = result is None or retrain or (not result.is_finished and retry_failed)
        if needed and (only is None or run.id in only):
            missing.add(run.id)
    return plan.jobs(missing, {run_id: numbers[run_id] + 1 for run_id in missing if run_id in numbers})


def retried_jobs(plan: SweepPlan, store: ResultStore, runs: Collection[str]) -> list[Job]:
    """Jobs for another attempt at each of these runs."""
    numbers = {run: max((attempt.attempt for attempt in store.attempts(run)), default=0) + 1 for run in runs}
    return plan.jobs(numbers, numbers)


def without_finished_runs(job: Job, store: ResultStore) -> Job | None:
    """The job without the runs that have a result of its attempt or a later one; None if all have one."""

    def is_missing(run: RunSpec) -> bool:
        result = store.get(run.id)
        return result is None or result.attempt < job.attempts.get(run.id, 1)

    return job.only(is_missing)


def describe_jobs(experiment: Experiment, plan: SweepPlan, results: Sequence[RunResult], folder: Path) -> str:
    """The scripts that the executor would submit for runs without a finished result, and the resources per job.

    Raises ConfigError if the executor submits no scripts.
    """
    executor = experiment.executor
    if executor.spec.describe_jobs is None:
        raise ConfigError(f"executor {executor.name!r} submits no scripts: add --executor slurm")
    finished = {result.id for result in results if result.is_finished}
    jobs = plan.jobs({run.id for run in plan.runs} - finished)
    return executor.call(executor.spec.describe_jobs, executor.options, jobs, folder)


def lost_worker(reason: str) -> RunError:
    """The error of a run with a worker that ended without a result. A traceback in the reason is split off."""
    cause, colon, traceback = reason.partition(": Traceback (most recent call last):")
    if not colon:
        return RunError(type="WorkerLost", message=reason or "the worker gave no result")
    last = reason.rstrip().rpartition("\n")[2].strip()
    return RunError(type="WorkerLost", message=f"{cause}: {last}", traceback=f"{colon[2:]}{traceback}")
