"""What can be tried before anything is trained: whether the optimizer can be built for the model."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import Experiment, PluginConfig
from flops_fit_core.errors import PlanError, PluginError
from flops_fit_core.flops.parameter_counts import parameter_groups
from flops_fit_core.planning.plain_sgd import WARNING
from flops_fit_core.plugins.protocols import Dataset, RunInfo
from flops_fit_core.plugins.specs import OptimizerSpec
from flops_fit_core.records import RunSpec

if TYPE_CHECKING:
    from torch import nn


def check_optimizer(experiment: Experiment, dataset: Dataset, module: nn.Module | None, run: RunSpec) -> list[str]:
    """Build the run's optimizer for a model of the sweep; notes on parameters that it leaves out.

    Nothing is checked where there is no model with values, or where the trainer starts a program that has its own.

    Raises PluginError or ConfigError where the optimizer cannot be built, PluginError where its learning rates do
    not scale with the width as it declares, PlanError where its step needs an argument or where it has none of the
    model's parameters.
    """
    import torch

    if module is None or "launch" in experiment.trainer.spec.can:
        return []
    chosen = experiment.optimizer.with_options(**run.optimizer.options)
    per_step = run.batch_size * dataset.task.tokens_per_sample
    groups = partial(parameter_groups, experiment.model)
    scaling = chosen.spec.width_scaling
    view = RunInfo(run.steps, run.tokens, per_step, run.base_width, groups=groups, width_scaling=scaling)
    with torch.random.fork_rng(devices=[]):
        optimizer = chosen.call(chosen.spec.build, chosen.options, module, view)
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
    with torch.random.fork_rng(devices=[]):
        _check_width_scaling(chosen, module, view, optimizer)
    return _left_out(chosen.name, optimizer, module)


def _check_width_scaling(
    chosen: PluginConfig[OptimizerSpec], module: nn.Module, view: RunInfo, optimizer: Any
) -> None:
    """Compare the learning rates at two base widths with the declaration. Raises PluginError if they disagree."""
    if view.base_width is None or view.width_scaling == "custom":
        return
    doubled = replace(view, base_width=2 * view.base_width)
    try:
        rates = _learning_rates(optimizer)
        doubled_rates = _learning_rates(chosen.call(chosen.spec.build, chosen.options, module, doubled))
    except (AttributeError, TypeError, KeyError):
        return  # an optimizer without readable groups
    scaled = view.width_scaling == "adam"
    groups = view.groups(module)
    ratios = {id(param): 2.0 if scaled and group.width else 1.0 for group in groups for param in group.parameters}
    for name, parameter in module.named_parameters():
        key = id(parameter)
        if key in rates and not math.isclose(doubled_rates.get(key, 0.0), ratios[key] * rates[key], rel_tol=1e-6):
            raise PluginError(
                f"optimizer {chosen.name!r} declares width_scaling={view.width_scaling!r}, and its learning rate "
                f"of {name} {'does not scale' if scaled else 'scales'} with the width: in build, make the "
                f"optimizer from run.param_groups(model, lr, weight_decay), or declare another width_scaling"
            )


def _learning_rates(optimizer: Any) -> dict[int, float]:
    """By the id of the parameter."""
    return {id(param): float(group["lr"]) for group in optimizer.param_groups for param in group["params"]}


def _left_out(name: str, optimizer: Any, module: nn.Module) -> list[str]:
    """Which parameters an optimizer does not have, of those that require gradients."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    try:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    except (AttributeError, TypeError, KeyError):
        return []  # it does not show them
    left = [name for name, parameter in trained.items() if id(parameter) not in held]
    if left and len(left) == len(trained):
        raise PlanError(
            f"optimizer {name!r} has none of the model's parameters: make it of those that it is given "
            f"(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))"
        )
    if not left:
        return []
    shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
    note = (
        f"{WARNING} optimizer {name!r} leaves out {len(left)} of the {len(trained)} parameters that require "
        f"gradients, which then stay as they start: {shown}"
    )
    return [note]
