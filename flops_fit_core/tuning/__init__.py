"""The learning-rate sweep: short runs at small sizes give the best rate for the experiment file.

The sweep is a separate study in ``tune/`` of the study's folder. The experiment's recipe plans its runs at several
values of one option; the experiment's trainer, executor and store train and keep them. An interrupted sweep
continues, and a finished one trains nothing.
"""

from __future__ import annotations

from flops_fit_core.tuning.best_rate import bootstrap_vertices, lowest_five, vertex
from flops_fit_core.tuning.experiment_file import changed_text, write_recipe, write_value
from flops_fit_core.tuning.learning_rate_sweep import LearningRateSweep, sweep_sizes
from flops_fit_core.tuning.records import SizeOptimum, Tuning, TuningRun
from flops_fit_core.tuning.tune import EXTENSIONS, tune
from flops_fit_core.tuning.tuned_option import TunedOption, find_tuned_option

__all__ = [
    "EXTENSIONS",
    "LearningRateSweep",
    "SizeOptimum",
    "TunedOption",
    "Tuning",
    "TuningRun",
    "bootstrap_vertices",
    "changed_text",
    "find_tuned_option",
    "lowest_five",
    "sweep_sizes",
    "tune",
    "vertex",
    "write_recipe",
    "write_value",
]
