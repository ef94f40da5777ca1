"""A study: its folder, its sweep, its results and its fit.

``Study`` joins a plan with a store and a folder. The sweep driver hands missing runs to an executor, stores each
result and continues after an interruption. Further modules retry runs, copy a study and examine one.
"""

from flops_fit_core.study.study import Study, study_folder

__all__ = ["Study", "study_folder"]
