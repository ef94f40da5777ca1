"""Runs that failed or diverged, trained again with other settings in the place of what was planned."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flops_fit_core.api import expected_params
from flops_fit_core.config import make_experiment, override_value
from flops_fit_core.errors import PlanError
from flops_fit_core.planning import make_plan
from flops_fit_core.records import RunResult, RunSpec
from flops_fit_core.study import Study

Cell = tuple[float, int | float | str, int]
"""Budget, size and seed: which of its runs a sweep means."""


def to_retry(study: Study, statuses: Collection[str], only: Collection[str] = ()) -> list[RunResult]:
    """Results of the study whose runs may be tried again; ``only`` those whose ids begin so.

    Raises PlanError where there are none.
    """
    found = [result for result in study.results if result.status in statuses]
    if only:
        found = [result for result in found if any(result.id.startswith(name) for name in only)]
    if not found:
        among = f" among {', '.join(only)}" if only else ""
        others = sum(result.status == "diverged" for result in study.results) if "diverged" not in statuses else 0
        hint = f"; {others} diverged: --diverged --set optimizer.lr=0.001, say" if others else ""
        raise PlanError(f"{study.plan.name} has no {' or '.join(sorted(statuses))} runs{among}{hint}")
    return found


def retried(study: Study, results: Sequence[RunResult], overrides: Sequence[str] = ()) -> Study:
    """The study with the runs of these results as the experiment plans them with ``overrides`` (``a.b=value``).

    A run whose settings change is a new run, and takes the old one's place in the plan for good; the old result
    stays in the store. Options that change no result (``trainer.micro_batch``, the executor's) hold for what is
    trained now. Nothing is trained or written here.

    Raises PlanError where a diverged run would be the same again, or is no longer planned; ConfigError.
    """
    data = study.folder.table()
    for override in overrides:
        override_value(data, override)
    experiment = make_experiment(data, study.registry, str(study.folder.experiment_file))
    changed = make_plan(experiment, expected_params(experiment, study.registry))
    fresh = {_cell(run): run for run in changed.runs}
    originals = {new.id: old for old, new in study.plan.replaced.items()}
    replaced = {}
    for result in results:
        new = fresh.get(_cell(result.run))
        if new is None:
            raise PlanError(
                f"with these changes there is no run of size {result.run.size} at C = {result.run.budget:.4g}"
            )
        if new.id == result.id and result.status == "diverged":
            raise PlanError(
                f"run {result.id} (C {result.run.budget:.3g}, size {result.run.size}) diverged and would do so "
                f"again: change what it is trained with, as in --set optimizer.lr=0.001"
            )
        if new.id != result.id:
            replaced[originals.get(result.id, result.id)] = new
    now = {"runtime": changed.runtime, "device": changed.device}
    sweep = study.plan.with_replacements(replaced).model_copy(update=now)
    kept = study.folder.experiment(study.registry)
    places = {"executor": experiment.executor, "device": experiment.device}
    return Study(sweep, study.registry, study.folder, experiment=kept.model_copy(update=places))


def _cell(run: RunSpec) -> Cell:
    return run.budget, run.size, run.seed
