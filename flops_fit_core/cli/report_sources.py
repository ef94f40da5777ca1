"""Write the report of a study, a table of runs or a saved fit."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_core.cli.laws import (
    LawRequest,
    build_request_fitter,
    is_fit,
    load_or_fit,
    open_request_study,
    read_request_table,
)
from flops_fit_core.cli.task_command import TaskRequest, is_task_fit, report_tasks
from flops_fit_core.config import DEFAULTS, build_fitter, choose_from_table
from flops_fit_core.errors import ConfigError, FitError
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import LawFit, Observation, Optimum
from flops_fit_core.study.law import ISOFLOP
from flops_fit_core.study.outputs import device_peaks, hold_out

if TYPE_CHECKING:
    from flops_fit_core.report.page import ReportContext
    from flops_fit_core.report.page.tasks import TaskReport


def write_source_report(
    request: LawRequest, task: TaskRequest, registry: Registry, out: Path | None
) -> list[Path]:
    """Write the report of any source of a law. Returns the files, the page first. Raises ConfigError, FitError.

    The reports of a table and of a fit go to ``NAME-report`` in the working directory by default.
    """
    source = request.source
    tasks = report_tasks(request, task, registry)
    if is_task_fit(source):
        reason = f"{source} is a fit of the accuracy of {tasks[0].fit.task}, without a law of the loss"
        return _write(request, registry, out, None, None, (), tasks, missing=reason)
    if source.is_file() and is_fit(source):
        fitted = load_or_fit(request, registry)
        return _write(request, registry, out, fitted.law, fitted.fitter, ())
    if request.is_table(registry):
        return _write_table(request, registry, out, tasks)
    refuse_other_law(request)
    return open_request_study(request, registry).report(out)


def refuse_other_law(request: LawRequest) -> None:
    """Raises ConfigError for options that choose another law than that of a study's experiment."""
    if refits := [text for text in (request.law, request.fitter, *request.options) if text]:
        raise ConfigError(
            f"{', '.join(refits)}: the report of a study shows the law of its experiment. For another law, type "
            f"flops-fit fit {request.source} --out fit.json with these options, then flops-fit report fit.json"
        )


def _write_table(
    request: LawRequest, registry: Registry, out: Path | None, tasks: Sequence[TaskReport]
) -> list[Path]:
    """A table to which no law can be fitted gives a page with its runs and the reason."""
    from flops_fit_core.fitting import fit_table

    fitter = build_request_fitter(request, registry, DEFAULTS["fitter"])
    table = read_request_table(request, registry)
    try:
        law = fit_table(fitter, table)
    except FitError as error:
        return _write(request, registry, out, None, fitter, table.observations, tasks, missing=str(error))
    return _write(request, registry, out, law, fitter, table.observations, tasks)


def _write(
    request: LawRequest,
    registry: Registry,
    out: Path | None,
    law: LawFit | None,
    fitter: Fitter | None,
    observations: Sequence[Observation],
    tasks: Sequence[TaskReport] = (),
    missing: str = "",
) -> list[Path]:
    from flops_fit_core.fitting import flag_outside
    from flops_fit_core.report import write_report
    from flops_fit_core.report.page import ReportContext

    def optimum(flops: float) -> Optimum:
        assert law is not None
        assert fitter is not None
        return flag_outside(law, fitter.optimum(law, flops))

    name = request.source.name
    shown, peaks = shlex.quote(str(request.source)), device_peaks(registry)
    context = ReportContext(source=shown, missing=missing, peaks=peaks, tasks=tasks)
    if law is not None and fitter is not None and observations:
        context = _compare_fits(context, law, fitter, observations, registry)
    return write_report(
        out or Path(f"{name.partition('.')[0]}-report"),
        observations=observations,
        fit=law,
        optimum=None if law is None else optimum,
        title=name,
        context=context,
    )


def _compare_fits(
    context: ReportContext,
    law: LawFit,
    fitter: Fitter,
    observations: Sequence[Observation],
    registry: Registry,
) -> ReportContext:
    """The context with the IsoFLOP law, the law with C = 6 N D and the backtest of the same runs."""
    from flops_fit_core.fitting import recounted

    isoflop = build_fitter(choose_from_table("fitter", ISOFLOP, registry, "isoflop"))
    is_6nd = all(abs(run.flops / (6 * run.params * run.tokens) - 1) < 0.01 for run in observations)
    return replace(
        context,
        isoflop=None if law.fitter.name == ISOFLOP else _fit_or_none(isoflop, observations),
        six_nd=None if is_6nd else _fit_or_none(fitter, recounted(observations)),
        backtest=hold_out(fitter, observations),
    )


def _fit_or_none(fitter: Fitter, observations: Sequence[Observation]) -> LawFit | None:
    try:
        return fitter.fit(observations)
    except FitError:
        return None
