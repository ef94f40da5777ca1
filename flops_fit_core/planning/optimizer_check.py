"""A trial of the optimizer on a model of the sweep, before training."""

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
    """Build the run's optimizer for a model of the sweep, and return notes on parameters that it omits.

    Nothing is checked without a model with values, or if the trainer launches a program with its own optimizer.

    Raises PluginError or ConfigError if the optimizer cannot be built, PluginError if its learning rates do not
    scale with the width as declared, PlanError if its ``step`` needs an argument or if it has none of the model's
    parameters.
    """
    import torch

    if module is None or "launch" in experiment.trainer.spec.can:
        return []
    config = experiment.optimizer.with_options(**run.optimizer.options)
    per_step = run.batch_size * dataset.task.tokens_per_sample
    groups = partial(parameter_groups, experiment.model)
    scaling = config.spec.width_scaling
    run_info = RunInfo(run.steps, run.tokens, per_step, run.base_width, groups=groups, width_scaling=scaling)
    with torch.random.fork_rng(devices=[]):
        optimizer = config.call(config.spec.build, config.options, module, run_info)
    if not callable(getattr(optimizer, "step", None)):
        raise PluginError(f"optimizer {config.name!r} returned {optimizer!r} instead of a torch optimizer")
    required = [
        name
        for name, parameter in inspect.signature(optimizer.step).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise PlanError(
            f"optimizer {config.name!r}: {type(optimizer).__name__}.step needs {', '.join(required)}, which "
            f"training does not pass: use an optimizer with a step() without arguments"
        )
    with torch.random.fork_rng(devices=[]):
        _check_width_scaling(config, module, run_info, optimizer)
    return _omitted_notes(config.name, optimizer, module)


def _check_width_scaling(
    config: PluginConfig[OptimizerSpec], module: nn.Module, run_info: RunInfo, optimizer: Any
) -> None:
    """Compare the learning rates at two base widths. Raises PluginError if they contradict the declaration."""
    if run_info.base_width is None or run_info.width_scaling == "custom":
        return
    doubled = replace(run_info, base_width=2 * run_info.base_width)
    try:
        rates = _learning_rates(optimizer)
        doubled_rates = _learning_rates(config.call(config.spec.build, config.options, module, doubled))
    except (AttributeError, TypeError, KeyError):
        return  # an optimizer without readable groups
    scaled = run_info.width_scaling == "adam"
    groups = run_info.groups(module)
    ratios = {id(param): 2.0 if scaled and group.width else 1.0 for group in groups for param in group.parameters}
    for name, parameter in module.named_parameters():
        key = id(parameter)
        if key in rates and not math.isclose(doubled_rates.get(key, 0.0), ratios[key] * rates[key], rel_tol=1e-6):
            raise PluginError(
                f"optimizer {config.name!r} declares width_scaling={run_info.width_scaling!r}, but its learning "
                f"rate of {name} {'does not scale' if scaled else 'scales'} with the width: in build, create the "
                f"optimizer from run.param_groups(model, lr, weight_decay), or declare another width_scaling"
            )


def _learning_rates(optimizer: Any) -> dict[int, float]:
    """Learning rates, keyed by the id of the parameter."""
    return {id(param): float(group["lr"]) for group in optimizer.param_groups for param in group["params"]}


def _omitted_notes(name: str, optimizer: Any, module: nn.Module) -> list[str]:
    """A warning for parameters that require gradients and are not in the optimizer."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    try:
        optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    except (AttributeError, TypeError, KeyError):
        return []  # an optimizer without readable groups
    omitted = [name for name, parameter in trained.items() if id(parameter) not in optimized]
    if omitted and len(omitted) == len(trained):
        raise PlanError(
            f"optimizer {name!r} has none of the model's parameters: create it from the parameters that it "
            f"receives (optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))"
        )
    if not omitted:
        return []
    names = ", ".join(omitted[:3]) + (", ..." if len(omitted) > 3 else "")
    note = (
        f"{WARNING} optimizer {name!r} omits {len(omitted)} of the {len(trained)} parameters that require "
        f"gradients. They keep their initial values: {names}"
    )
    return [note]
