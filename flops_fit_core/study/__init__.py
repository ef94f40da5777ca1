"""A study: its folder, its sweep, its results and its fit.

``Study`` combines a plan, a folder and a store. The sweep driver submits missing runs to an executor, stores each
result and continues after an interruption. Further modules retry runs, copy a study and diagnose a machine.
"""

from flops_fit_core.study.opening import study_folder
from flops_fit_core.study.study import Study

__all__ = ["Study", "study_folder"]
