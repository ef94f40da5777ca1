"""The data of a study's figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_core.errors import FitError
from flops_fit_core.records import LawFit
from flops_fit_core.study.evaluations import evaluation_points
from flops_fit_core.study.law import StudyLaw

if TYPE_CHECKING:
    from flops_fit_core.fitting import Backtest
    from flops_fit_core.report.figures import FigureData, TrainingCurve


def figure_data(law: StudyLaw, folder: Path, backtest: Backtest | None = None) -> FigureData:
    """Runs, law, predictions for 10 and 100 times the largest budget, backtest and loss curves of a study.

    ``folder`` is the study's. ``backtest`` is that of the largest budget, by default computed. Without a law,
    the data have the runs and the reason. Raises FitError if no run has a loss.
    """
    from flops_fit_core.report.figures import FigureData, Names

    fit, reason = _fit(law)
    plan, results = law.plan, law.results.planned
    return FigureData(
        law.observations,
        fit,
        law.predict,
        [] if fit is None else [10 * fit.flops_range[1], 100 * fit.flops_range[1]],
        run_backtest=lambda: backtest or _backtest(law),
        read_curves=lambda: read_training_curves(law, folder),
        conventions=Names(plan.params_name, plan.flops_name, plan.unit, law.eval_set),
        no_law=reason,
        synthetic=any(result.synthetic for result in results),
    )


def _fit(law: StudyLaw) -> tuple[LawFit | None, str]:
    try:
        return law.fit, ""
    except FitError as error:
        return None, str(error)


def _backtest(law: StudyLaw) -> Backtest:
    from flops_fit_core.fitting import backtest

    return backtest(law.fitter, law.observations)


def read_training_curves(law: StudyLaw, folder: Path) -> list[TrainingCurve]:
    """The losses during training of every run, finished or not; empty without evaluations during training."""
    from flops_fit_core.report.figures import TrainingCurve

    points = evaluation_points(law.plan, law.results.planned, folder)
    curves = []
    for run in law.plan.runs:
        finite = {step: loss for step, loss in points.get(run.id, ()) if loss is not None and loss > 0 < step}
        if finite:
            flops = [run.flops * step / run.steps for step in finite]
            curves.append(TrainingCurve(flops, list(finite.values()), run.budget))
    return curves
