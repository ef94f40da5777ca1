"""The content of a page, before it is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flops_fit_core.fitting.backtesting import Backtest
from flops_fit_core.records import LawFit, Observation, Optimum, RunResult, SweepPlan
from flops_fit_core.report.page.prediction_grid import PredictionGrid
from flops_fit_core.report.page.tasks import TaskReport


@dataclass(frozen=True)
class ReportContext:
    """Further data of a report, next to its fit and its runs. Everything is optional."""

    source: str = ""
    """The study or table as the reader types it in a command."""
    missing: str = ""
    """Why no law could be fitted."""
    isoflop: LawFit | None = None
    """The IsoFLOP law of the same runs."""
    six_nd: LawFit | None = None
    """The law of the same runs with C = 6 N D."""
    backtest: Backtest | None = None
    tasks: Sequence[TaskReport] = ()
    """The forecast accuracy of each task."""
    missing_tasks: Mapping[str, str] = field(default_factory=dict)
    """Task without a forecast -> the reason."""
    experiment: str = ""
    """Text of the experiment file."""
    peaks: Mapping[str, float] = field(default_factory=dict)
    """Name of a device -> peak FLOP/s in bfloat16."""


@dataclass(frozen=True)
class ReportContent:
    """The content of a page."""

    title: str
    fit: LawFit | None = None
    """None if the runs allow no law yet."""
    answer: Optimum | None = None
    """The prediction at the top of the page; None without a law."""
    predictions: Sequence[Optimum] = ()
    curve: Sequence[Optimum] = ()
    """Optima at many budgets in ascending order, for figures."""
    grid: PredictionGrid | None = None
    """Optima by budget and tokens of inference, for the budget field."""
    observations: Sequence[Observation] = ()
    results: Sequence[RunResult] = ()
    plan: SweepPlan | None = None
    synthetic: bool = False
    context: ReportContext = ReportContext()

    @property
    def unit(self) -> str:
        """The unit of D."""
        if self.fit is not None:
            return self.fit.unit
        return self.plan.unit if self.plan is not None else "tokens"

    @property
    def params_name(self) -> str:
        """The convention by which N is counted."""
        return self._convention("params_name")

    @property
    def flops_name(self) -> str:
        """The convention by which C is counted."""
        return self._convention("flops_name")

    def _convention(self, name: str) -> str:
        for source in (self.fit, self.plan, *self.results[:1]):
            if source is not None and getattr(source, name):
                return str(getattr(source, name))
        return "not recorded"
