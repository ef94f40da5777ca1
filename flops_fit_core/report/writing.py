"""Writes a report: figures, tables and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import LawFit, Observation, Optimum, RunResult, SweepPlan
from flops_fit_core.report.figures import FigureData, Names, draw_all, write_figure
from flops_fit_core.report.figures.accuracy import accuracy_figure
from flops_fit_core.report.page import ReportContent, ReportContext, render_page
from flops_fit_core.report.page.prediction_grid import find_solver, prediction_grid, solve_many
from flops_fit_core.report.tables import minima_table, predictions_table, runs_table
from flops_fit_core.report.task_tables import accuracy_table

if TYPE_CHECKING:
    from flops_fit_core.fitting.laws.optimum_solver import OptimumSolver
    from flops_fit_core.report.datatable import DataTable

CURVE_POINTS = 60
"""Optima along C in the page's figures."""


def write_report(
    folder: Path,
    *,
    observations: Sequence[Observation],
    fit: LawFit | None,
    optimum: Callable[[float], Optimum] | None,
    results: Sequence[RunResult] = (),
    plan: SweepPlan | None = None,
    title: str | None = None,
    context: ReportContext | None = None,
    figures: FigureData | None = None,
) -> list[Path]:
    """Write a report into ``folder``: ``index.html``, figures as PNG and SVG, tables as CSV.

    Each file is replaced atomically, so that several processes can write the report at the same time.

    Args:
        folder: Created if missing. An earlier report in it is replaced.
        observations: The runs given to the fitter. None are needed for a saved fit.
        fit: The law; None if no law can be fitted yet. The page then names what is missing.
        optimum: Returns the optimum for a budget in FLOPs, by that law; None without a law.
        results: Results of the runs, for the table of runs, versions and machines; without them these are omitted.
        plan: The plan, for its notes and for runs without a result.
        title: Title of the page; by default the plan's name.
        context: Other fits of the same runs, and the source of the report.
        figures: The data of the figures, with loss curves and a backtest; by default the runs and the law.

    The page predicts the optimum for 1, 10 and 100 times the largest fitted budget, and starts with the answer for
    10 times.

    Returns the files written, the page first. Raises OSError for a folder that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    synthetic = any(result.synthetic for result in results)
    content = ReportContent(
        title=title or (plan.name if plan else "Scaling law"),
        fit=fit,
        observations=observations,
        results=results,
        plan=plan,
        synthetic=synthetic,
        context=context or ReportContext(),
    )
    tables: dict[str, DataTable] = {}
    data = figures or _figure_data(content)
    if fit is not None and optimum is not None:
        optimum = lru_cache(maxsize=None)(optimum)
        solver = find_solver(fit, optimum)
        content = _add_predictions(content, fit, optimum, solver)
        budgets = [prediction.flops for prediction in content.predictions[1:]]
        data = replace(data, law=fit, optimum_at=solver or optimum, budgets=budgets)
        tables = {"minima": minima_table(fit), "predictions": predictions_table(fit, content.predictions)}
    if results:
        tables["runs"] = runs_table(results, plan)
    tasks = {f"accuracy-{number}": task for number, task in enumerate(content.context.tasks, 1)}
    tables |= {stem: accuracy_table(task.fit, task.forecasts) for stem, task in tasks.items()}
    files: list[Path] = []
    for stem, figure in (draw_all(data) if observations or fit is not None else {}).items():
        files += write_figure(figure, folder, stem)[0]
    for stem, task in tasks.items():
        files += write_figure(accuracy_figure(task.fit, task.curve, task.scores), folder, stem)[0]
    for stem, table in tables.items():
        files.append(folder / f"{stem}.csv")
        write_atomically(files[-1], table.csv(), durable=False)
    page = folder / "index.html"
    write_atomically(page, render_page(content), durable=False)
    return [page, *files]


def _add_predictions(
    content: ReportContent, fit: LawFit, optimum: Callable[[float], Optimum], solver: OptimumSolver | None
) -> ReportContent:
    """The content with predictions, the curve of optima, and the grid for the budget field."""
    low, high = fit.flops_range
    predictions = [optimum(flops) for flops in (high, 10 * high, 100 * high)]
    ends = [low, 10 * high, *(minimum.budget for minimum in fit.minima)]
    flops = [float(value) for value in np.geomspace(min(ends), max(ends), CURVE_POINTS)]
    # The ends of the fitted range are points of the curve, so that its solid part reaches them.
    curve = solve_many(solver, optimum, sorted({*flops, low, high}))
    return ReportContent(
        **{
            **vars(content),
            "answer": predictions[1],
            "predictions": predictions,
            "curve": curve,
            "grid": prediction_grid(fit, optimum, solver),
        }
    )


def _figure_data(content: ReportContent) -> FigureData:
    """The runs, for figures without loss curves and without a backtest."""
    names = Names(content.params_name, content.flops_name, content.unit)
    return FigureData(content.observations, conventions=names, synthetic=content.synthetic)
