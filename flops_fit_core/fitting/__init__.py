"""The statistics: from trained models to a law, its intervals, and the optimum for a budget.

Usable on its own, on runs that anybody trained anywhere. Names are loaded when first asked for, so that
importing this package imports no numpy and no scipy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flops_fit_core.fitting.backtesting import Backtest, HeldOut, backtest
    from flops_fit_core.fitting.data import Runs, curve_points, observations
    from flops_fit_core.fitting.fitters.envelope import EnvelopeFitter
    from flops_fit_core.fitting.fitters.isoflop import IsoflopFitter
    from flops_fit_core.fitting.fitters.joint import JointFitter
    from flops_fit_core.fitting.fitters.parametric import ParametricFitter
    from flops_fit_core.fitting.fitters.profiles import profile_loss
    from flops_fit_core.fitting.grid import check_grid, flag_outside, grid_edges, profile_minima
    from flops_fit_core.fitting.io.tables import (
        RunTable,
        is_table,
        read_complete_table,
        read_runs,
        read_table,
        table_groups,
    )
    from flops_fit_core.fitting.laws.optima import follow_family, optimum
    from flops_fit_core.fitting.predict import (
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
    from flops_fit_core.fitting.recount import recounted
    from flops_fit_core.fitting.uncertainty.likelihood import profile_intervals

_LAZY = {
    "Backtest": "backtesting",
    "Cost": "predict",
    "EnvelopeFitter": "fitters.envelope",
    "HeldOut": "backtesting",
    "IsoflopFitter": "fitters.isoflop",
    "JointFitter": "fitters.joint",
    "OffOptimum": "predict",
    "ParametricFitter": "fitters.parametric",
    "RunTable": "io.tables",
    "Runs": "data",
    "Served": "predict",
    "backtest": "backtesting",
    "cheapest_to_serve": "predict",
    "check_grid": "grid",
    "checklist": "predict",
    "curve_points": "data",
    "disagreement": "predict",
    "fit_table": "predict",
    "flag_outside": "grid",
    "follow_family": "laws.optima",
    "grid_edges": "grid",
    "is_table": "io.tables",
    "load_fit": "predict",
    "observations": "data",
    "off_optimum": "predict",
    "optimum": "laws.optima",
    "parameter_intervals": "predict",
    "predict_loss": "predict",
    "profile_intervals": "uncertainty.likelihood",
    "profile_loss": "fitters.profiles",
    "profile_minima": "grid",
    "read_complete_table": "io.tables",
    "read_runs": "io.tables",
    "read_table": "io.tables",
    "recounted": "recount",
    "summary": "predict",
    "table_groups": "io.tables",
    "training_cost": "predict",
    "write_fit": "predict",
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
