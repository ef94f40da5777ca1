"""The hooks a plugin may implement.

A plugin is a module (or any object) with functions marked ``@hookimpl``. Registration hooks take no arguments and
return specs. An experiment selects specs by name, never by order, so installing a package changes no result.
Observers are called in the driver. Their exceptions are logged and never stop a sweep.
"""

from flops_fit_core.plugins.hookspecs.execution import (
    flops_fit_devices,
    flops_fit_executors,
    flops_fit_loggers,
    flops_fit_stores,
)
from flops_fit_core.plugins.hookspecs.fitting import flops_fit_fitters, flops_fit_laws
from flops_fit_core.plugins.hookspecs.markers import PROJECT, hookimpl, hookspec
from flops_fit_core.plugins.hookspecs.models import flops_fit_datasets, flops_fit_models
from flops_fit_core.plugins.hookspecs.observers import flops_fit_run_finished, flops_fit_sweep_finished
from flops_fit_core.plugins.hookspecs.readers import flops_fit_readers
from flops_fit_core.plugins.hookspecs.training import (
    flops_fit_flop_counters,
    flops_fit_optimizers,
    flops_fit_recipes,
    flops_fit_schedules,
    flops_fit_trainers,
)

__all__ = [
    "PROJECT",
    "flops_fit_datasets",
    "flops_fit_devices",
    "flops_fit_executors",
    "flops_fit_fitters",
    "flops_fit_flop_counters",
    "flops_fit_laws",
    "flops_fit_loggers",
    "flops_fit_models",
    "flops_fit_optimizers",
    "flops_fit_readers",
    "flops_fit_recipes",
    "flops_fit_run_finished",
    "flops_fit_schedules",
    "flops_fit_stores",
    "flops_fit_sweep_finished",
    "flops_fit_trainers",
    "hookimpl",
    "hookspec",
]
