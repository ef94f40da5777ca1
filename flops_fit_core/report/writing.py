"""Writes a study's report: figures, tables and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import LawFit, Observation, Optimum, RunResult, SweepPlan
from flops_fit_core.report.figures import KINDS, FigureData, draw_all, write_figure
from flops_fit_core.report.page import ReportContent, ReportFigure, render_page
from flops_fit_core.report.tables import minima_table, predictions_table, runs_table


def write_report(
    folder: Path,
    *,
    observations: Sequence[Observation],
    fit: LawFit,
    optimum: Callable[[float], Optimum],
    results: Sequence[RunResult] = (),
    plan: SweepPlan | None = None,
    figures: FigureData | None = None,
) -> list[Path]:
    """Write a report into ``folder``: ``index.html``, figures as PNG and SVG, tables as CSV.

    Each file is replaced atomically, so that several processes can write the report at the same time.

    Args:
        folder: Created if missing. An earlier report in it is replaced.
        observations: The runs given to the fitter.
        fit: The law.
        optimum: Returns the optimum for a budget in FLOPs, by that law.
        results: Results of the runs, for the table of runs, versions and machines; without them these are omitted.
        plan: The plan, for its notes and for runs without a result.
        figures: The data of the figures, with loss curves and a backtest; by default the runs and the law.

    The page predicts the optimum for 1, 10 and 100 times the largest fitted budget, and starts with the answer for
    10 times.

    Returns the files written, the page first. Raises OSError for a folder that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    largest = fit.flops_range[1]
    budgets = [largest, 10 * largest, 100 * largest]
    predictions = [optimum(flops) for flops in budgets]
    answer = predictions[1]
    synthetic = any(result.synthetic for result in results)
    data = figures or FigureData(observations, fit, optimum, budgets[1:], synthetic=synthetic)
    files: list[Path] = []
    page_figures: list[ReportFigure] = []
    for stem, figure in draw_all(data).items():
        written, svg = write_figure(figure, folder, stem)
        files += written
        page_figures.append(ReportFigure(svg, KINDS[stem].caption))
    tables = {"minima": minima_table(fit), "predictions": predictions_table(fit, predictions)}
    if results:
        tables["runs"] = runs_table(results, plan)
    for stem, table in tables.items():
        files.append(folder / f"{stem}.csv")
        write_atomically(files[-1], table.csv(), durable=False)
    title = plan.name if plan else "Scaling law"
    content = ReportContent(title, fit, answer, predictions, page_figures, results, plan, synthetic)
    page = folder / "index.html"
    write_atomically(page, render_page(content), durable=False)
    return [page, *files]
