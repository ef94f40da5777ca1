"""The report of a study: tables, figures and a page.

Importing this package does not import matplotlib: figures and the page are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flops_fit_core.report.comparison import describe_comparison, gains_table
from flops_fit_core.report.datatable import DataTable
from flops_fit_core.report.tables import (
    exponents,
    exponents_line,
    laws_table,
    minima_table,
    plan_table,
    predictions_table,
    runs_table,
    skipped_table,
)
from flops_fit_core.report.task_tables import accuracy_table, describe_task_fit

if TYPE_CHECKING:
    from flops_fit_core.report.comparison import gain_figure
    from flops_fit_core.report.figures import (
        isoflop_figure,
        optimum_figure,
        residual_figure,
        runs_figure,
        save_figure,
        tokens_per_param_figure,
    )
    from flops_fit_core.report.writing import write_report

_LAZY = {
    "gain_figure": "comparison",
    "isoflop_figure": "figures",
    "optimum_figure": "figures",
    "residual_figure": "figures",
    "runs_figure": "figures",
    "save_figure": "figures",
    "tokens_per_param_figure": "figures",
    "write_report": "writing",
}

__all__ = [
    "DataTable",
    "accuracy_table",
    "describe_comparison",
    "describe_task_fit",
    "exponents",
    "exponents_line",
    "gain_figure",
    "gains_table",
    "isoflop_figure",
    "laws_table",
    "minima_table",
    "optimum_figure",
    "plan_table",
    "predictions_table",
    "residual_figure",
    "runs_figure",
    "runs_table",
    "save_figure",
    "skipped_table",
    "tokens_per_param_figure",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"flops_fit_core.report.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
