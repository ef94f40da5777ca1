"""The options of ``plan`` and ``run``: an experiment, changes to it, and the study's folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flops_fit_core.cli import arguments as args
from flops_fit_core.study import Study


def study_planner(
    source: args.SourceArgument,
    out: args.OutOption = None,
    overrides: args.SetOption = None,
    model: args.ModelOption = None,
    dataset: args.DatasetOption = None,
    optimizer: args.OptimizerOption = None,
    schedule: args.ScheduleOption = None,
    recipe: args.RecipeOption = None,
    counter: args.CounterOption = None,
    trainer: args.TrainerOption = None,
    device: args.DeviceOption = None,
    store: args.StoreOption = None,
    executor: args.ExecutorOption = None,
    fitter: args.FitterOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
) -> tuple[Callable[..., Study]]:
    """A function that plans the study of a command line: ``args.plan_source`` without ``starts``."""
    swaps = {
        "model": model,
        "dataset": dataset,
        "optimizer": optimizer,
        "schedule": schedule,
        "recipe": recipe,
        "counter": counter,
        "trainer": trainer,
        "device": device,
        "store": store,
        "executor": executor,
        "fitter": fitter,
    }
    registry = args.registry_to_train(source, plugin, disabled)
    return (partial(args.plan_source, source, registry, out, overrides, swaps),)
