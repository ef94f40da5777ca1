"""Train the missing runs of a study, and check the outcome."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing

from flops_fit_core.config import Experiment, build_executor, build_logger, check_argument, list_slots
from flops_fit_core.errors import StudyWarning, SweepFailed
from flops_fit_core.planning.family_flops import record_family
from flops_fit_core.plugins.protocols import Executor, Logger
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import RunResult, SweepPlan
from flops_fit_core.report.run_errors import describe_failures
from flops_fit_core.study.directory import INLINE, StudyFolder
from flops_fit_core.study.heartbeat import Heartbeat, new_owner, withdraw_start
from flops_fit_core.study.live.other_drivers import OtherDriversReader
from flops_fit_core.study.live.progress import SweepProgress, is_wanted
from flops_fit_core.study.model_check import record_model_check
from flops_fit_core.study.other_stores import check_claims, check_no_other_driver, check_single_driver
from flops_fit_core.study.results import StudyResults
from flops_fit_core.study.settings import StudySettings
from flops_fit_core.study.sweep import Sweep
from flops_fit_core.study.trust import save_study
from flops_fit_core.training.executor_context import StudyExecutorContext

TIMED_FLOPS = 2e11
"""A sweep with fewer FLOPs takes seconds, and less than timing its sizes is worth."""

logger = logging.getLogger("flops_fit")


def train_missing(
    plan: SweepPlan,
    settings: StudySettings,
    results: StudyResults,
    *,
    loggers: Sequence[Logger],
    retry_failed: bool,
    retrain: bool,
    only: Collection[str] | None,
    save: bool,
    progress: bool,
    timings: Mapping[str, float],
) -> list[RunResult]:
    """Write the plan to the folder (with ``save``) and train the runs that the store lacks.

    ``timings``: run id -> tokens per second of a few sizes, to estimate the time left. The other arguments and the
    errors are those of :meth:`flops_fit_core.Study.train`.
    """
    experiment, folder, registry = settings.load(), settings.folder, settings.registry
    for logger in loggers:
        check_argument("loggers", logger, Logger)
    own_loggers = [build_logger(chosen, folder.path) for chosen in experiment.loggers]
    check_no_other_driver(folder, experiment.store, registry)
    workers = count_parallel_jobs(experiment, plan)
    with results.store() as store:
        check_claims(store)
        check_single_driver(folder, store)
        results.copy_from_other_stores(store)
        heartbeat = Heartbeat(folder.path, new_owner(), experiment.executor.name, workers=workers)
        # Before the plan is written, so that no process sees the plan without its driver.
        heartbeat.write()
        withdraw_start(folder.path)
        with closing(heartbeat):
            if save:
                save_study(folder, experiment, plan, registry)
                record_model_check(experiment, plan, folder.path)
                record_family(experiment, plan, folder.path)
            view: SweepProgress | None = None
            if is_wanted(progress):
                heartbeat.set_timings(timings or _measure_timings(plan, registry, results.planned))
                done, ignored = _split_by_need(results.planned, retry_failed, retrain)
                view = SweepProgress(
                    folder.shown,
                    done,
                    ignored=ignored,
                    workers=workers,
                    timings=heartbeat.timings,
                    other_drivers=OtherDriversReader(folder.path, heartbeat.owner),
                )
            sweep = Sweep(
                plan,
                store,
                _build_executor(experiment, settings),
                registry,
                loggers=[*loggers, *own_loggers],
                retry_failed=retry_failed,
                retrain=retrain,
                only=only,
                folder=folder.path,
                open_store=results.open_again,
                heartbeat=heartbeat,
                view=view,
            )
            return sweep.run()


def _split_by_need(
    results: Sequence[RunResult], retry_failed: bool, retrain: bool
) -> tuple[list[RunResult], list[RunResult]]:
    """The results that count as done, and those of runs that are trained again."""
    done: list[RunResult] = []
    trained_again: list[RunResult] = []
    for result in results:
        is_done = not retrain and (result.is_finished or not retry_failed)
        (done if is_done else trained_again).append(result)
    return done, trained_again


def _measure_timings(plan: SweepPlan, registry: Registry, results: Sequence[RunResult]) -> Mapping[str, float]:
    """Timings of a few sizes for the estimate of the time left.

    Not for a short sweep, nor if runs have finished, which are better. Python objects are left alone: a dataset
    may change when it is read.
    """
    if plan.flops < TIMED_FLOPS or any(result.is_finished for result in results) or INLINE in registry.plugins:
        return {}
    from flops_fit_core.training import measure_timings

    try:
        return measure_timings(plan, registry, plan.runs, cpu_only=True)
    except Exception as error:
        logger.info("no timings were measured: %s", error)
        return {}


def count_parallel_jobs(experiment: Experiment, plan: SweepPlan) -> int | None:
    """Jobs that the executor trains at the same time; None if that is unknown before they run."""
    executor = experiment.executor
    workers = executor.call(executor.spec.places, executor.options, list_slots(experiment.device))
    devices = max((run.devices for run in plan.runs), default=1)
    return None if workers is None else max(1, int(workers) // devices)


def check_outcome(plan: SweepPlan, results: Sequence[RunResult], folder: StudyFolder) -> None:
    """Raise SweepFailed if runs failed and none is completed.

    Issue a StudyWarning if some runs failed, or if all runs diverged.
    """
    failed = [result for result in results if result.status == "failed"]
    diverged = sum(result.status == "diverged" for result in results)
    completed = sum(result.status == "completed" for result in results)
    if not failed:
        if diverged and not completed:
            warnings.warn(f"all {diverged} runs of {folder.shown} diverged", StudyWarning, stacklevel=4)
        return
    details = "\n".join(describe_failures(failed, folder.shown, in_full=True)[1:])
    message = f"{len(failed)} of {len(plan.runs)} runs of {folder.shown} failed:\n{details}"
    if not completed:
        raise SweepFailed(message)
    warnings.warn(message, StudyWarning, stacklevel=4)


def _build_executor(experiment: Experiment, settings: StudySettings) -> Executor:
    context = StudyExecutorContext(
        folder=settings.folder.path,
        plugins=settings.registry.setup.model_dump_json(),
        live=settings.registry.objects,
        slots=list_slots(experiment.device),
    )
    return build_executor(experiment.executor, context)
