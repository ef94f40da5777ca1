"""The records of runs, jobs, plans, results and fits.

All records are frozen and have no torch objects. ``model_dump_json`` and ``model_validate_json`` restore an equal
record. Notation: N parameters, D tokens (or samples, depending on the task), C training FLOPs (forward and
backward), L held-out loss in nats per token.
"""

from __future__ import annotations

from flops_fit_core.records.base import Positive, Record, canonical_json, content_hash
from flops_fit_core.records.fits import (
    FAR,
    Diagnostic,
    Interval,
    Law,
    LawFit,
    LawMember,
    NewRunError,
    Observation,
    Optimum,
    ProfileMinimum,
)
from flops_fit_core.records.results import Evaluation, Progress, RunError, RunResult, Status
from flops_fit_core.records.runs import (
    Hyperparameters,
    Job,
    ParameterCounts,
    PluginChoice,
    RunSpec,
    SkippedCell,
    SweepPlan,
    Trajectory,
)

__all__ = [
    "FAR",
    "Diagnostic",
    "Evaluation",
    "Hyperparameters",
    "Interval",
    "Job",
    "Law",
    "LawFit",
    "LawMember",
    "NewRunError",
    "Observation",
    "Optimum",
    "ParameterCounts",
    "PluginChoice",
    "Positive",
    "ProfileMinimum",
    "Progress",
    "Record",
    "RunError",
    "RunResult",
    "RunSpec",
    "SkippedCell",
    "Status",
    "SweepPlan",
    "Trajectory",
    "canonical_json",
    "content_hash",
]
