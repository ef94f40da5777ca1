"""Records of a fitted task and of its forecasts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flops_fit_core.records import Diagnostic, Interval, Law, Record
from flops_fit_core.records.base import Positive

Share = Annotated[float, Field(ge=0, le=1)]


class TaskFit(Record):
    """The accuracy of a task as a function of N and D, with its uncertainty."""

    task: str
    """The fitted accuracy: a column of a table, or a metric of the runs."""
    via: str
    """The loss of step 1: a column of a table, a metric or a held-out set of the runs."""
    loss_law: Law
    """Step 1: the loss from N and D, E + A / N^alpha + B / D^beta."""
    loss_curve: Law
    """Step 2: accuracy from the loss."""
    compute_curve: Law
    """The direct curve: accuracy from C and N / D."""
    main_loss_law: Law
    """The main held-out loss from N and D. Its optimum is N and D of a forecast for a budget."""
    draws: dict[str, dict[str, tuple[float, ...]]] = {}
    """Bootstrap draws: part (``loss``, ``two_step``, ``direct``) -> parameter -> values."""
    chance: Share | None = None
    """Stated accuracy of guessing; None if the floor is fitted freely."""
    ceiling: Share = 1.0
    """Stated accuracy of a perfect model."""
    questions: int | None = None
    """Stated number of questions of the task."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    n_runs: int
    noise: float
    """Standard deviation of one run's accuracy p around the law, divided by sqrt(p (1 - p))."""
    noise_dof: Positive
    """Degrees of freedom of ``noise``."""
    growth: float
    """Standard deviation of the law's error at e times the largest fitted C, in the unit of ``noise``, from
    backtests. The variance is proportional to ln of the distance."""
    flops_range: tuple[Positive, Positive]
    params_range: tuple[Positive, Positive]
    accuracy_range: tuple[Share, Share]
    """Lowest and highest measured accuracy."""
    flops_per_token: tuple[tuple[Positive, Positive], ...] = ()
    """(N, C / D) of the runs; empty if C is 6 N D to within 1%."""
    excluded: dict[str, str] = {}
    """Run -> reason why the fit did not use it."""
    diagnostics: tuple[Diagnostic, ...] = ()
    params_name: str = "as given"
    flops_name: str = "as given"
    unit: str = "tokens"
    seed: int = 0

    @property
    def is_forecastable(self) -> bool:
        """Whether no check found that the accuracy of this task cannot be forecast."""
        return not any(item.code.startswith("task-") and item.severity == "warning" for item in self.diagnostics)


class AccuracyForecast(Record):
    """The accuracy of a model of N parameters after D tokens."""

    params: Positive
    tokens: Positive
    flops: Positive
    accuracy: Interval
    """Mean of the two forecasts, with the interval of the law."""
    new_run: Interval
    """The same accuracy with the interval of one further run, noise included."""
    two_step: Interval
    """Accuracy from the forecast loss."""
    direct: Interval
    """Accuracy from C and N / D."""
    loss: Interval
    """The forecast loss of step 1."""
    notes: tuple[str, ...] = ()
