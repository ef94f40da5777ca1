"""The statistics: from trained models to a law, its intervals, and the optimum for a budget.

Usable on its own, on runs that anybody trained anywhere. Names are loaded when first asked for, so that
importing this package imports no numpy and no scipy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flops_fit_core.fitting.conventions import recounted
    from flops_fit_core.fitting.data import Runs, observations
    from flops_fit_core.fitting.isoflop import IsoflopFitter
    from flops_fit_core.fitting.optima import optimum
    from flops_fit_core.fitting.parametric import ParametricFitter
    from flops_fit_core.fitting.profiles import profile_loss
    from flops_fit_core.fitting.reading import RunTable, read_runs, read_table

_LAZY = {
    "IsoflopFitter": "isoflop",
    "ParametricFitter": "parametric",
    "RunTable": "reading",
    "Runs": "data",
    "observations": "data",
    "optimum": "optima",
    "profile_loss": "profiles",
    "read_runs": "reading",
    "read_table": "reading",
    "recounted": "conventions",
}

__all__ = [
    "IsoflopFitter",
    "ParametricFitter",
    "RunTable",
    "Runs",
    "observations",
    "optimum",
    "profile_loss",
    "read_runs",
    "read_table",
    "recounted",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"flops_fit_core.fitting.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
