"""What can be tried before anything is trained: whether the optimizer can be built for the model."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING

from flops_fit_core.config import Experiment
from flops_fit_core.contracts import Dataset, RunView
from flops_fit_core.errors import PlanError, PluginError
from flops_fit_core.parameter_counts import parameter_groups
from flops_fit_core.records import RunSpec

if TYPE_CHECKING:
    from torch import nn


def check_optimizer(experiment: Experiment, dataset: Dataset, module: nn.Module | None, run: RunSpec) -> None:
    """Build the run's optimizer for a model of the sweep.

    Nothing is checked where there is no model with values, or where the trainer starts a program that has its own.

    Raises PluginError where the optimizer cannot be built, PlanError where its step needs an argument.
    """
    import torch

    if module is None or "launch" in experiment.trainer.spec.can:
        return
    chosen = experiment.optimizer.with_options(**run.optimizer.options)
    per_step = run.batch_size * dataset.task.tokens_per_sample
    groups = partial(parameter_groups, experiment.model)
    view = RunView(run.steps, run.tokens, per_step, run.base_width, groups=groups)
    with torch.random.fork_rng(devices=[]):
        optimizer = chosen.calling("build", chosen.options, module, view)
    if not callable(getattr(optimizer, "step", None)):
        raise PluginError(f"optimizer {chosen.name!r} gave {optimizer!r} instead of a torch optimizer")
    needed = [
        name
        for name, parameter in inspect.signature(optimizer.step).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise PlanError(
            f"optimizer {chosen.name!r}: {type(optimizer).__name__}.step needs {', '.join(needed)}, which "
            f"training does not give: choose an optimizer whose step() takes no argument"
        )
