"""Runs that failed or diverged, trained again with other settings in the place of what was planned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from flops_fit_core.config import make_experiment, override_value
from flops_fit_core.errors import PlanError
from flops_fit_core.planning import make_plan
from flops_fit_core.planning.init_from_fit import expected_params
from flops_fit_core.plugins.protocols import Logger
from flops_fit_core.records import RunResult, RunSpec, SweepPlan
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


def retry(
    study: Study, results: Sequence[RunResult], overrides: Sequence[str] = (), loggers: Sequence[Logger] = ()
) -> Study:
    """Train the runs of these results again, as the experiment plans them with ``overrides`` (``a.b=value``).

    A run whose settings change is a new run, and takes the old one's place in the study's plan for good; the old
    result stays in the store. Options that change no result (``trainer.micro_batch``, ``device.devices_per_run``,
    the executor's) hold for this try. Returns the study as it is then.

    Raises PlanError where a diverged run would be the same again, or is no longer planned; ConfigError.
    """
    study.folder.check_can_train(study.registry)
    data = study.folder.table()
    for override in overrides:
        override_value(data, override)
    experiment = make_experiment(data, study.registry, str(study.folder.experiment_file))
    changed = make_plan(experiment, expected_params(experiment, study.registry))
    fresh = {_cell(run): run for run in changed.runs}
    chosen = [_again(result, fresh) for result in results]
    originals = {new.id: old for old, new in study.plan.replaced.items()}
    replaced = {
        originals.get(result.id, result.id): run
        for result, run in zip(results, chosen, strict=True)
        if run.id != result.id
    }
    kept = Study(study.plan.with_replacements(replaced), study.registry, study.folder)
    study.folder.save(study.folder.experiment(study.registry), kept.plan, study.registry.setup)
    now = SweepPlan(**{**dict(changed), "runs": tuple(chosen), "name": study.plan.name})
    this_try = Study(now, study.registry, study.folder, experiment=experiment)
    this_try.train(loggers=loggers, only={run.id for run in chosen}, save=False, check=False)
    return kept


def _again(result: RunResult, planned: Mapping[Cell, RunSpec]) -> RunSpec:
    old, new = result.run, planned.get(_cell(result.run))
    if new is None:
        raise PlanError(
            f"with these changes there is no run of size {old.size} at C = {old.budget:.4g}, seed {old.seed}"
        )
    if new.id == old.id and result.status == "diverged":
        raise PlanError(
            f"run {old.id} (C {old.budget:.3g}, size {old.size}) diverged and would do so again: change what it "
            f"is trained with, as in --set optimizer.lr=0.001"
        )
    return new


def _cell(run: RunSpec) -> Cell:
    return run.budget, run.size, run.seed
