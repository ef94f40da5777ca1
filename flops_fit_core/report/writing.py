"""Writes a study's report: figures, tables and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flops_fit_core.records import LawFit, Observation, Optimum, RunResult, SweepPlan
from flops_fit_core.report.figures import isoflop_figure, optimum_figure, save_figure, tokens_per_param_figure
from flops_fit_core.report.page import Picture, Story, render
from flops_fit_core.report.tables import minima_table, predictions_table, runs_table

_CAPTIONS = {
    "isoflop": """IsoFLOP profiles: held-out loss of every run against N, with each budget's fitted profile and
        its minimum. Points are losses as measured; profiles are fitted at the nominal budget.""",
    "optimum": """Optimal N and D against C. Dashed: beyond the fitted budgets. Bands and bars are the fit's
        intervals, where it has them.""",
    "tokens-per-param": """Data over parameters at the optimum, against C. The band goes from the low end of D over
        the high end of N to the opposite.""",
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

    Args:
        folder: Made where there is none. An earlier report in it is replaced.
        observations: What the fit was given.
        fit: The law.
        optimum: What to train for a budget in FLOPs, by that law.
        results: Of the runs, for the table of runs, versions and machines; with none, those parts are left out.
        plan: What was planned, for its notes and what is still to do.

    The page predicts for the largest fitted budget, ten and a hundred times as much. The first answer is for ten
    times as much.

    Returns the files written, the page first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    largest = fit.flops_range[1]
    asked = [largest, 10 * largest, 100 * largest]
    predictions = [optimum(flops) for flops in asked]
    answer = predictions[1]
    synthetic = any(result.synthetic for result in results)
    figures = {
        "isoflop": isoflop_figure(observations, fit, synthetic=synthetic),
        "optimum": optimum_figure(fit, optimum, budgets=asked[1:], synthetic=synthetic),
        "tokens-per-param": tokens_per_param_figure(fit, optimum, budgets=asked[1:], synthetic=synthetic),
    }
    files: list[Path] = []
    pictures: list[Picture] = []
    for stem, figure in figures.items():
        files += save_figure(figure, folder, stem)
        pictures.append(Picture(files[-1].read_text(encoding="utf-8"), " ".join(_CAPTIONS[stem].split())))
    tables = {"minima": minima_table(fit), "predictions": predictions_table(fit, predictions)}
    if results:
        tables["runs"] = runs_table(results, plan)
    for stem, table in tables.items():
        files.append(folder / f"{stem}.csv")
        files[-1].write_text(table.csv(), encoding="utf-8")
    title = plan.name if plan else "Scaling law"
    story = Story(title, fit, answer, predictions, pictures, results, plan, synthetic)
    page = folder / "index.html"
    page.write_text(render(story), encoding="utf-8")
    return [page, *files]
