"""Tables, the figure and the page of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from flops_fit_core.errors import FitError, FlopsFitError
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.records import LawFit, Optimum, RunResult
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.law import ISOFLOP, StudyLaw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flops_fit_core.report import DataTable
    from flops_fit_core.report.answer import Answer


def predictions(law: StudyLaw, budgets: Sequence[float] | None) -> DataTable:
    """The optimum of each budget; by default of the plan's budgets and of 10 and 100 times the largest."""
    from flops_fit_core.report import predictions_table

    planned = law.plan.budgets
    chosen = budgets or [*planned, 10 * planned[-1], 100 * planned[-1]]
    return predictions_table(law.fit, [law.predict(flops) for flops in chosen])


def answer(
    law: StudyLaw, results: Sequence[RunResult], folder: StudyFolder, fit: LawFit, fitter: Fitter
) -> Answer:
    """The answer of a fit of the study's runs: for 10 times the largest budget, and for the plan's budgets.

    Args:
        law: The study's law, for its plan and its IsoFLOP law.
        results: The latest results of the plan's runs.
        folder: The study's folder, for the commands to type next.
        fit: The fit to show, for example the study's own.
        fitter: Its fitter.
    """
    from flops_fit_core.fitting import disagreement, has_optimum
    from flops_fit_core.report.answer import Answer, order_diagnostics
    from flops_fit_core.report.numbers import scientific

    isoflop = None if fit.fitter.name == ISOFLOP else law.isoflop[0]
    disagreements = disagreement(fit, isoflop) if isoflop is not None and has_optimum(fit) else []
    largest = law.plan.budgets[-1]
    optima = find_optima(fit, fitter, [*law.plan.budgets, 10 * largest, 100 * largest])
    shown, chosen = quote(folder.shown), f" --eval-set {quote(law.eval_set)}" if law.eval_set else ""
    page = Path(folder.shown, "report", law.eval_set or "", "index.html")
    pointers = {"report": str(page)} if page.exists() else {}
    pointers["next"] = f"flops-fit predict {shown}{chosen} --flops {scientific(100 * largest)}"
    pointers["explain"] = f"flops-fit fit {shown}{chosen} --explain"
    return Answer(
        title=describe_runs(law, results, fit),
        fit=fit,
        optimum=optima[-2] if optima else None,
        rows=tuple(optima),
        isoflop=isoflop,
        diagnostics=order_diagnostics(disagreements, fit.diagnostics, isoflop.diagnostics if isoflop else ()),
        pointers=pointers,
    )


def find_optima(fit: LawFit, fitter: Fitter, budgets: Sequence[float]) -> list[Optimum]:
    """The optimum of each budget; empty for a law without an optimum, or that needs further inputs."""
    from flops_fit_core.fitting import flag_outside

    try:
        return [flag_outside(fit, fitter.optimum(fit, flops)) for flops in budgets]
    except FlopsFitError:
        return []


def describe_runs(law: StudyLaw, results: Sequence[RunResult], fit: LawFit) -> str:
    """``text-gpt   22 of 24 runs, 2 failed, 1 left out of the fit, 8 min 20 s of training``."""
    from flops_fit_core.report.numbers import duration

    counts = Counter(result.status for result in results)
    parts = [f"{counts['completed']} of {len(law.plan.runs)} runs"]
    parts += [f"{counts[status]} {status}" for status in ("failed", "diverged") if counts[status]]
    parts += [f"{len(fit.excluded)} left out of the fit"] if fit.excluded else []
    if any(result.synthetic for result in results):
        parts.append("synthetic: computed from a formula, nothing was trained")
    else:
        parts.append(f"{duration(sum(result.seconds for result in results))} of training")
    return f"{law.plan.name}   {', '.join(parts)}"


def profile_minima(law: StudyLaw) -> DataTable:
    """The minima by the law; by a parabola in ln N if the law has none or cannot be fitted."""
    from flops_fit_core.fitting import profile_minima as find_minima
    from flops_fit_core.report import minima_table
    from flops_fit_core.report.datatable import conventions
    from flops_fit_core.report.tables import table_of_minima

    try:
        if law.fit.minima:
            return minima_table(law.fit)
    except FitError:
        pass  # profiles need no law
    minima, diagnostics = find_minima(law.observations)
    caption = conventions(law.plan.params_name, law.plan.flops_name, law.plan.unit, law.eval_set)
    return table_of_minima(minima, caption, diagnostics)


def profile_figure(law: StudyLaw, path: str | Path | None) -> Figure:
    """The IsoFLOP profiles with their minima; the runs alone if no law can be fitted. Saved if a path is given."""
    from flops_fit_core.report import isoflop_figure, runs_figure
    from flops_fit_core.report.figures import without_latex

    synthetic = any(result.synthetic for result in law.results.planned)
    figure: Figure
    try:
        figure = isoflop_figure(law.observations, law.fit, synthetic=synthetic)
    except FitError:
        figure = runs_figure(
            law.observations,
            params_name=law.plan.params_name,
            flops_name=law.plan.flops_name,
            unit=law.plan.unit,
            eval_set=law.eval_set,
            synthetic=synthetic,
        )
    if path is not None:
        with without_latex():
            figure.savefig(path)
    return figure


def write_page(law: StudyLaw, results: Sequence[RunResult], folder: Path) -> list[Path]:
    """Write figures, tables and the page. Returns the files, the page first."""
    from flops_fit_core.report import write_report

    return write_report(
        folder,
        observations=law.observations,
        fit=law.fit,
        optimum=law.predict,
        results=results,
        plan=law.plan,
    )
