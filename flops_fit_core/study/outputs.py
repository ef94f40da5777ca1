"""Tables, the figure and the page of a study."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from flops_fit_core.errors import ConfigError, FitError, FlopsFitError
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import LawFit, Observation, Optimum, RunResult, SweepPlan
from flops_fit_core.records.html import html_block, html_text
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.figures import figure_data
from flops_fit_core.study.law import ISOFLOP, StudyLaw
from flops_fit_core.study.states import count_states

if TYPE_CHECKING:
    from flops_fit_core.fitting import Backtest
    from flops_fit_core.report import DataTable
    from flops_fit_core.report.answer import Answer
    from flops_fit_core.report.page import ReportContext


def predictions(law: StudyLaw, budgets: Sequence[float] | None) -> DataTable:
    """The optimum of each budget; by default of the plan's budgets and of 10 and 100 times the largest."""
    from flops_fit_core.report import predictions_table

    planned = law.plan.budgets
    chosen = budgets or [*planned, 10 * planned[-1], 100 * planned[-1]]
    return predictions_table(law.fit, [law.predict(flops) for flops in chosen])


def answer(
    law: StudyLaw,
    results: Sequence[RunResult],
    folder: StudyFolder,
    fit: LawFit,
    fitter: Fitter,
    flops: float | None = None,
) -> Answer:
    """The answer of a fit of the study's runs: for one budget, and for the plan's budgets.

    Args:
        law: The study's law, for its plan and its IsoFLOP law.
        results: The latest results of the plan's runs.
        folder: The study's folder, for the commands to type next.
        fit: The fit to show, for example the study's own.
        fitter: Its fitter.
        flops: The budget; None for 10 times the largest of the plan.
    """
    from flops_fit_core.fitting import disagreement, has_optimum
    from flops_fit_core.numbers import scientific
    from flops_fit_core.report.answer import Answer, order_diagnostics

    isoflop = None if fit.fitter.name == ISOFLOP else law.isoflop[0]
    disagreements = disagreement(fit, isoflop) if isoflop is not None and has_optimum(fit) else []
    largest = law.plan.budgets[-1]
    budgets = [10 * largest, 100 * largest] if flops is None else [flops]
    if flops is not None:
        fitter.optimum(fit, flops)  # raises FitError for a budget that the law cannot answer
    optimum = next(iter(find_optima(fit, fitter, budgets[:1])), None)
    optima = find_optima(fit, fitter, sorted({*law.plan.budgets, *budgets}))
    shown, chosen = quote(folder.shown), f" --eval-set {quote(law.eval_set)}" if law.eval_set else ""
    page = Path(folder.shown, "report", law.eval_set or "", "index.html")
    pointers = {"report": str(page)} if page.exists() else {}
    pointers["next"] = f"flops-fit predict {shown}{chosen} --flops {scientific(100 * largest)}"
    pointers["explain"] = f"flops-fit fit {shown}{chosen} --explain"
    return Answer(
        title=describe_runs(law, results, fit),
        fit=fit,
        optimum=optimum,
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
    from flops_fit_core.numbers import duration

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


def study_html(law: StudyLaw, results: Sequence[RunResult], folder: str) -> str:
    """A study for notebooks: the runs by state, failures, and the answer or the reason why there is none."""
    from flops_fit_core.report import exponents_line
    from flops_fit_core.report.run_errors import describe_failures

    states = {state: count for state, count in count_states(law.plan, results).items() if count}
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    title = f"{law.plan.name}: {counts} of {len(law.plan.runs)} runs"
    failures = "".join(map(html_text, describe_failures(results, folder)))
    try:
        answer = html_text(exponents_line(law.fit)) + predictions(law, None)._repr_html_()
    except FitError as error:
        answer = html_text(f"no law yet: {str(error).partition(chr(10))[0]}")
    return html_block(title, failures, answer, html_text(folder))


def write_page(law: StudyLaw, results: Sequence[RunResult], folder: Path, study: StudyFolder) -> list[Path]:
    """Write figures, tables and the page. Returns the files, the page first.

    Without a law, the page names what a law still needs.
    """
    from flops_fit_core.report import write_report

    context = _describe_study(law, results, study, law.registry)
    observations: list[Observation] = []
    fit = None
    try:
        observations = law.observations
        fit = law.fit
    except FitError as error:
        context = replace(context, missing=str(error))
    else:
        context = replace(context, **_compare_fits(law, fit))
    return write_report(
        folder,
        observations=observations,
        fit=fit,
        optimum=None if fit is None else law.predict,
        results=results,
        plan=law.plan,
        context=context,
        figures=figure_data(law, study.path, context.backtest) if observations else None,
    )


def _describe_study(
    law: StudyLaw, results: Sequence[RunResult], study: StudyFolder, registry: Registry
) -> ReportContext:
    """The study's folder, its experiment, its tasks, and the devices with a known peak."""
    from flops_fit_core.report.page import ReportContext

    experiment = ""
    with contextlib.suppress(ConfigError):  # a study that has not been written to its folder yet
        experiment = experiment_text(study.table())
    return ReportContext(
        source=quote(study.shown),
        experiment=experiment,
        peaks=device_peaks(registry),
        **_describe_tasks(law.plan, results),
    )


def _describe_tasks(plan: SweepPlan, results: Sequence[RunResult]) -> dict[str, Any]:
    """The accuracy of every task of the runs, by its metric ``NAME/acc`` or ``NAME/accuracy``."""
    from flops_fit_core.fitting import fit_task, scores_of_results
    from flops_fit_core.report.page.tasks import describe_task

    metrics = {name for result in results if result.status == "completed" for name in result.metrics}
    names = {"params_name": plan.params_name, "flops_name": plan.flops_name, "unit": plan.unit}
    reports, missing = [], {}
    for metric in sorted(name for name in metrics if name.rpartition("/")[2] in ("acc", "accuracy")):
        try:
            scored = scores_of_results(results, metric)
            fit = fit_task(scored.scores).model_copy(update={**names, "excluded": scored.excluded})
        except FitError as error:
            missing[metric] = str(error)
        else:
            reports.append(describe_task(fit, scored.scores))
    return {"tasks": reports, "missing_tasks": missing}


def device_peaks(registry: Registry) -> dict[str, float]:
    """Name of a device -> peak FLOP/s in bfloat16, in descending order."""
    peaks: dict[str, float] = {}
    for offer in registry.offers("device"):
        peaks |= offer.spec.peaks()
    return dict(sorted(peaks.items(), key=lambda item: (-item[1], item[0])))


def _compare_fits(law: StudyLaw, fit: LawFit) -> dict[str, Any]:
    """The IsoFLOP law, the law with C = 6 N D and the backtest; None where the runs allow none."""
    from flops_fit_core.fitting import recounted

    six_nd = None
    if fit.flops_name != "6 N D":
        with contextlib.suppress(FitError):
            six_nd = law.fit_with(law.fitter, recounted(law.observations))
    return {"isoflop": law.isoflop[0], "six_nd": six_nd, "backtest": hold_out(law.fitter, law.observations)}


def hold_out(fitter: Fitter, observations: Sequence[Observation]) -> Backtest | None:
    """A backtest of the largest budget; None if the runs allow none."""
    from flops_fit_core.fitting import backtest

    try:
        return backtest(fitter, observations)
    except FitError:
        return None


def experiment_text(table: Mapping[str, Any]) -> str:
    """An experiment as the text of an experiment file. Passwords are masked."""
    import tomlkit

    from flops_fit_core.config.secrets import mask_secrets

    table = _without_none({key: table[key] for key in table if key != "format"})
    return tomlkit.dumps(mask_secrets(table)).strip()


def _without_none(value: Any) -> Any:
    """TOML has no null: an option of value None is left out."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value
