"""The loss curves of a study's runs, finished or not, with the schedule of each run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit_core.config import choose
from flops_fit_core.errors import FitError
from flops_fit_core.plugins.protocols import RunInfo
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import RunSpec
from flops_fit_core.records.base import content_hash
from flops_fit_core.study.evaluations import evaluation_points

if TYPE_CHECKING:
    from flops_fit_core.fitting import LossCurve
    from flops_fit_core.study.study import Study

_NOT_IN_GROUP = {
    "seed",
    "steps",
    "tokens",
    "schedule",
    "budget",
    "size",
    "flops_per_token",
    "branch_step",
    "devices",
}
"""Fields in which runs of one group may differ: the curve law is for one model, data set, optimizer and batch
size."""


def study_curves(study: Study) -> list[LossCurve]:
    """A curve for each run of the plan with evaluations during training. Rates are divided by the peak.

    Evaluations of unfinished runs come from their checkpoints. In a shared stable phase, they belong to every
    unfinished run of the trajectory. Curves of one group have equal values except D, seed and schedule.

    Raises FitError if no run has an evaluation during training, and PluginNotFound if the plugin of a schedule is
    not loaded.
    """
    points = evaluation_points(study.plan, study.results, study.folder.path)
    curves = [_curve(run, points[run.id], study.registry) for run in study.plan.runs if points.get(run.id)]
    usable = [curve for curve in curves if curve is not None and len(curve.steps) > 1]
    if not usable:
        raise FitError(
            f"{study.folder.path}: no run has evaluations during training. Set num_evals of the trainer before "
            "you train, for example --set trainer.num_evals=30"
        )
    return usable


def _curve(run: RunSpec, points: list[tuple[int, float | None]], registry: Registry) -> LossCurve | None:
    from flops_fit_core.fitting import LearningRates, LossCurve

    finite = {step: loss for step, loss in points if loss is not None and loss > 0 and step > 0}
    if not finite:
        return None
    chosen = choose("schedule", run.schedule, registry)
    schedule = chosen.spec.build(chosen.options, _run_info(run))
    rates = LearningRates.of(schedule, run.steps)
    steps = sorted(finite)
    values = run.model_dump(mode="json", exclude=_NOT_IN_GROUP, exclude_defaults=True)
    group = f"size {run.size} ({content_hash(values)[:8]})"
    return LossCurve(run.id, np.array(steps), np.array([finite[step] for step in steps]), rates, group)


def _run_info(run: RunSpec) -> RunInfo:
    def no_model(model: Any) -> Any:
        raise FitError("a schedule that depends on the model's parameter groups cannot be read without the model")

    return RunInfo(
        steps=run.steps,
        tokens=run.tokens,
        tokens_per_step=run.positions_per_step,
        base_width=run.base_width,
        groups=no_model,
        width_scaling="none",
    )
