"""The statistics: from trained models to a law, its intervals, and the optimum for a budget.

Usable on its own, on runs that anybody trained anywhere. Names are loaded when first asked for, so that
importing this package imports no numpy and no scipy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flops_fit_core.fitting.backtesting import Backtest, HeldOut, backtest
    from flops_fit_core.fitting.conventions import recounted
    from flops_fit_core.fitting.data import Runs, curve_points, observations
    from flops_fit_core.fitting.envelope import EnvelopeFitter
    from flops_fit_core.fitting.grid import check_grid, flag_outside, grid_edges, profile_minima
    from flops_fit_core.fitting.isoflop import IsoflopFitter
    from flops_fit_core.fitting.joint import JointFitter
    from flops_fit_core.fitting.likelihood import profile_intervals
    from flops_fit_core.fitting.optima import follow_family, optimum
    from flops_fit_core.fitting.parametric import ParametricFitter
    from flops_fit_core.fitting.profiles import profile_loss
    from flops_fit_core.fitting.reading import (
        RunTable,
        is_table,
        read_complete_table,
        read_runs,
        read_table,
        table_groups,
    )
    from flops_fit_core.fitting.using import (
        Cost,
        OffOptimum,
        Served,
        cheapest_to_serve,
        checklist,
        disagreement,
        fit_table,
        load_fit,
        off_optimum,
        parameter_intervals,
        predict_loss,
        summary,
        training_cost,
        write_fit,
    )

_LAZY = {
    "Backtest": "backtesting",
    "Cost": "using",
    "EnvelopeFitter": "envelope",
    "HeldOut": "backtesting",
    "IsoflopFitter": "isoflop",
    "JointFitter": "joint",
    "OffOptimum": "using",
    "ParametricFitter": "parametric",
    "RunTable": "reading",
    "Runs": "data",
    "Served": "using",
    "backtest": "backtesting",
    "cheapest_to_serve": "using",
    "check_grid": "grid",
    "checklist": "using",
    "curve_points": "data",
    "disagreement": "using",
    "fit_table": "using",
    "flag_outside": "grid",
    "follow_family": "optima",
    "grid_edges": "grid",
    "is_table": "reading",
    "load_fit": "using",
    "observations": "data",
    "off_optimum": "using",
    "optimum": "optima",
    "parameter_intervals": "using",
    "predict_loss": "using",
    "profile_intervals": "likelihood",
    "profile_loss": "profiles",
    "profile_minima": "grid",
    "read_complete_table": "reading",
    "read_runs": "reading",
    "read_table": "reading",
    "recounted": "conventions",
    "summary": "using",
    "table_groups": "reading",
    "training_cost": "using",
    "write_fit": "using",
}

__all__ = [
    "Backtest",
    "Cost",
    "EnvelopeFitter",
    "HeldOut",
    "IsoflopFitter",
    "JointFitter",
    "OffOptimum",
    "ParametricFitter",
    "RunTable",
    "Runs",
    "Served",
    "backtest",
    "cheapest_to_serve",
    "check_grid",
    "checklist",
    "curve_points",
    "disagreement",
    "fit_table",
    "flag_outside",
    "follow_family",
    "grid_edges",
    "is_table",
    "load_fit",
    "observations",
    "off_optimum",
    "optimum",
    "parameter_intervals",
    "predict_loss",
    "profile_intervals",
    "profile_loss",
    "profile_minima",
    "read_complete_table",
    "read_runs",
    "read_table",
    "recounted",
    "summary",
    "table_groups",
    "training_cost",
    "write_fit",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"flops_fit_core.fitting.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
