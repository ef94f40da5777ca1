"""An experiment file (TOML, JSON or YAML) as typed choices of plugins.

An experiment has a table for each kind of plugin: ``name`` chooses the plugin, the other keys are its typed
options. A bare string is a name without options.
"""

from __future__ import annotations

from flops_fit_core.config.building import (
    build_dataset,
    build_executor,
    build_fitter,
    build_hyperparameters,
    build_logger,
    build_store,
    check_argument,
    list_slots,
)
from flops_fit_core.config.choices import DEFAULTS, PluginConfig, choose, choose_from_table
from flops_fit_core.config.experiment import Experiment, Sweep, make_experiment
from flops_fit_core.config.explaining import explain
from flops_fit_core.config.files import (
    experiment_name,
    load_experiment,
    override_value,
    read_table,
    replace_choice,
)

__all__ = [
    "DEFAULTS",
    "Experiment",
    "PluginConfig",
    "Sweep",
    "build_dataset",
    "build_executor",
    "build_fitter",
    "build_hyperparameters",
    "build_logger",
    "build_store",
    "check_argument",
    "choose",
    "choose_from_table",
    "experiment_name",
    "explain",
    "list_slots",
    "load_experiment",
    "make_experiment",
    "override_value",
    "read_table",
    "replace_choice",
]
