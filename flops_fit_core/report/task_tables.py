"""The laws of a task and its forecasts, as sentences and as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flops_fit_core import numbers
from flops_fit_core.records import FAR, Interval
from flops_fit_core.report.answer import describe_distance
from flops_fit_core.report.datatable import Column, DataTable, Row, column

if TYPE_CHECKING:
    from flops_fit_core.fitting import AccuracyForecast, TaskFit


def describe_task_fit(fit: TaskFit) -> Iterator[str]:
    """The three laws with the intervals of their parameters, and the noise of one run, a line each."""
    from flops_fit_core.fitting import task_intervals

    texts = {
        part: ", ".join(f"{name} = {value}" for name, value in law.items())
        for part, law in task_intervals(fit).items()
    }
    top = f"{fit.ceiling:g}"
    yield f"{fit.task}, {fit.n_runs} runs, {fit.level:.0%} intervals. Forecast: mean of two steps and direct."
    yield f"Step 1: {fit.via} = E + A / N^alpha + B / D^beta: {texts['loss']}"
    yield (
        f"Step 2: accuracy = floor + ({top} - floor) / (1 + exp(slope ({fit.via} - midpoint))): "
        f"{texts['two_step']}"
    )
    yield (
        f"Direct: accuracy = floor + ({top} - floor) / (1 + exp(-intercept - slope (ln C + split ln(N / D)))): "
        f"{texts['direct']}"
    )
    low, high = fit.accuracy_range
    middle = (low + high) / 2
    yield (
        f"Standard deviation of one run: {fit.noise * math.sqrt(middle * (1 - middle)):.3f} at an accuracy of "
        f"{middle:.2f}"
    )


def accuracy_table(fit: TaskFit, forecasts: Sequence[AccuracyForecast]) -> DataTable:
    """Forecasts of a task, one per row.

    If a row lies beyond 100 times the largest C of the runs, intervals come first, and its numbers have one digit.
    """
    level = f"{fit.level:.0%}"
    largest = fit.flops_range[1]
    rows = tuple(_row(forecast) for forecast in forecasts)
    accuracy = Column("accuracy", lambda row: _show_accuracy(row["accuracy"], row["flops"] / largest))
    intervals = [
        Column("law", lambda row: _ends(row["law"], row["flops"] / largest)),
        Column("new run", lambda row: _ends(row["new_run"], row["flops"] / largest)),
    ]
    distance = Column("", lambda row: describe_distance(row["flops"], fit.flops_range), align_left=True)
    are_far = any(row["flops"] > FAR * largest for row in rows)
    return DataTable(
        title=f"Forecast of {fit.task}",
        caption=(
            f"N: {fit.params_name}. C: training FLOPs, {fit.flops_name}. D: {fit.unit}. Law: {level} interval of "
            f"the expected accuracy; new run: {level} interval of one further run."
        ),
        fields=("flops", "params", "tokens", "accuracy", "law", "new_run", "two_step", "direct"),
        rows=rows,
        columns=(
            *([distance] if are_far else []),
            column("C", "flops", numbers.scientific),
            column("N", "params", numbers.count),
            column("D", "tokens", numbers.count),
            *([*intervals, accuracy] if are_far else [accuracy, *intervals]),
            Column("two steps", lambda row: _show_accuracy(row["two_step"].value, row["flops"] / largest)),
            Column("direct", lambda row: _show_accuracy(row["direct"].value, row["flops"] / largest)),
        ),
        diagnostics=fit.diagnostics,
    )


def _row(forecast: AccuracyForecast) -> Row:
    return {
        "flops": forecast.flops,
        "params": forecast.params,
        "tokens": forecast.tokens,
        "accuracy": forecast.accuracy.value,
        "law": forecast.accuracy,
        "new_run": forecast.new_run,
        "two_step": forecast.two_step,
        "direct": forecast.direct,
    }


def _show_accuracy(value: float, factor: float) -> str:
    """An accuracy. ``factor``: C over the largest C of the runs."""
    return f"{value:.3f}" if factor <= FAR else f"~{value:.1f}"


def _ends(estimate: Interval, factor: float) -> str:
    if estimate.low is None or estimate.high is None:
        return numbers.NONE
    decimals = 3 if factor <= FAR else 1
    return f"{estimate.low:.{decimals}f} to {estimate.high:.{decimals}f}"
