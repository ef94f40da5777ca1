"""Writes a study's report: figures, tables and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import LawFit, Observation, Optimum, RunResult, SweepPlan
from flops_fit_core.report.figures import isoflop_figure, optimum_figure, tokens_per_param_figure, write_figure
from flops_fit_core.report.page import ReportContent, ReportFigure, render_page
from flops_fit_core.report.residuals import residual_figure
from flops_fit_core.report.tables import minima_table, predictions_table, runs_table

_CAPTIONS = {
    "isoflop": """IsoFLOP profiles: held-out loss of every run against N, with each budget's fitted profile and
        its minimum. Points are measured losses; profiles are fitted at the nominal budget.""",
    "optimum": """Optimal N and D against C. Dashed: beyond the fitted budgets. Bands and bars are the intervals
        of the fit, if any.""",
    "tokens-per-param": """Data over parameters at the optimum, against C. The band reaches from the low end of D
        over the high end of N to the high end of D over the low end of N.""",
    "residuals": """Residuals: the loss of every run relative to the law, against its size over the optimal size at
        its C. If the law has the right form, runs scatter about zero at every size, and 90% lie in the band. A
        pattern along the parabola means that the form of the law decides the optimum.""",
}


def write_report(
    folder: Path,
    *,
    observations: Sequence[Observation],
    fit: LawFit,
    optimum: Callable[[float], Optimum],
    results: Sequence[RunResult] = (),
    plan: SweepPlan | None = None,
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
    figures = {
        "isoflop": isoflop_figure(observations, fit, synthetic=synthetic),
        "optimum": optimum_figure(fit, optimum, budgets=budgets[1:], synthetic=synthetic),
        "tokens-per-param": tokens_per_param_figure(fit, optimum, budgets=budgets[1:], synthetic=synthetic),
    }
    residuals = residual_figure(observations, fit, synthetic=synthetic)
    if residuals is not None:
        figures["residuals"] = residuals
    files: list[Path] = []
    page_figures: list[ReportFigure] = []
    for stem, figure in figures.items():
        written, svg = write_figure(figure, folder, stem)
        files += written
        page_figures.append(ReportFigure(svg, " ".join(_CAPTIONS[stem].split())))
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
