"""Read the scores of a task from a table of runs, or from the results of a study."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.files import read_raw
from flops_fit_core.fitting.io.numbers import NumberFormat, decide_format
from flops_fit_core.fitting.io.tables import RunTable, read_table
from flops_fit_core.fitting.task_accuracy.scores import TaskScores
from flops_fit_core.records import Diagnostic, Observation, RunResult

LOSS = "loss"
"""The name in ``via`` of the main held-out loss."""
_ACCURACY_WORD = re.compile(r"(?:accuracy|acc)(?:_norm|_per_byte|_per_token)?(?![a-z])", re.IGNORECASE)
_LOSS_WORDS = ("bpb", "bits_per_byte", "bits_per_token")
"""Words that replace ``acc`` or ``accuracy`` in the name of the task's own loss, best first."""


@dataclass(frozen=True)
class ScoreTable:
    """Scores with the runs that cannot be used, and notes on the columns."""

    scores: TaskScores
    excluded: dict[str, str] = field(default_factory=dict)
    """Run -> reason."""
    diagnostics: list[Diagnostic] = field(default_factory=list)


def scores_of_table(
    path: Path,
    task: str,
    via: str | None = None,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    **options: Any,
) -> ScoreTable:
    """The scores in a table of runs.

    Args:
        path: The file.
        task: Column of accuracies, as shares or in percent.
        via: Column of the loss of step 1. None: the bits per byte of the task if a column has the task's name with
            ``bpb`` instead of ``acc``; otherwise the loss column.
        columns: As for :func:`~flops_fit_core.fitting.read_table`.
        where: As for ``read_table``.
        options: Further options of ``read_table``.

    Raises FitError if a column does not exist, or as ``read_table``.
    """
    path = Path(path)
    header = read_raw(path).header
    task = _find_name(task, header, f"{path} has no column")
    via = _default_via(task, header) if via is None else via
    via = via if via == LOSS else _find_name(via, header, f"{path} has no column")
    table = _read_runs(path, via, dict(columns or {}), where, options)
    numbers = _number_format(table, (task, via), options.get("decimal"))
    losses = {run.id: run.loss for run in table.observations}
    read_loss: Callable[[Observation], Any] = (
        (lambda run: losses[run.id]) if via == LOSS else (lambda run: table.cells[run.id].get(via))
    )
    scored = _collect(table.observations, task, via, lambda run: table.cells[run.id].get(task), read_loss, numbers)
    message = f"accuracy = {task!r}, loss of step 1 = {via!r}; {len(scored.scores)} runs have both"
    return ScoreTable(
        scored.scores,
        {**table.excluded, **scored.excluded},
        [
            *table.diagnostics,
            Diagnostic(code="task-columns", message=message, severity="note"),
            *scored.diagnostics,
        ],
    )


def scores_of_results(results: Iterable[RunResult], task: str, via: str | None = None) -> ScoreTable:
    """The scores of a study's completed runs.

    Args:
        results: The results.
        task: A metric of the results.
        via: A metric, a further held-out set, or ``loss`` for the main held-out loss. None: the bits per byte of
            the task if the runs have them; otherwise ``loss``.

    Raises FitError if no run has the metric or the loss.
    """
    from flops_fit_core.fitting.data import observations

    completed = {result.id: result for result in results if result.status == "completed"}
    metrics = sorted({name for result in completed.values() for name in result.metrics})
    task = _find_name(task, metrics, "no completed run has the metric")
    losses = sorted({name for result in completed.values() for name in result.losses})
    via = _default_via(task, metrics) if via is None else via
    via = via if via == LOSS else _find_name(via, [*metrics, *losses], "no completed run has the metric or loss")

    def read_loss(run: Observation) -> Any:
        result = completed[run.id]
        return result.loss if via == LOSS else result.metrics.get(via, result.losses.get(via))

    runs = observations(completed.values())
    return _collect(runs, task, via, lambda run: completed[run.id].metrics.get(task), read_loss, NumberFormat())


def _collect(
    runs: Sequence[Observation],
    task: str,
    via: str,
    read_accuracy: Callable[[Observation], Any],
    read_loss: Callable[[Observation], Any],
    numbers: NumberFormat,
) -> ScoreTable:
    """The runs with an accuracy and a loss; reasons for the others. Accuracies in percent are divided by 100."""
    values: dict[str, tuple[float, float]] = {}
    excluded: dict[str, str] = {}
    for run in runs:
        try:
            accuracy = numbers.number(task, _without_percent(read_accuracy(run)))
            loss = numbers.number(via, read_loss(run))
            if loss <= 0:
                raise ValueError(f"{via} is {loss:g}; it must be positive")
            values[run.id] = accuracy, loss
        except ValueError as error:
            excluded[run.id] = str(error)
    if not values:
        reasons = "; ".join(list(dict.fromkeys(excluded.values()))[:3])
        raise FitError(f"no run has both {task} and {via}: {reasons or 'there are no completed runs'}")
    accuracies = np.array([accuracy for accuracy, _ in values.values()])
    diagnostics = []
    if accuracies.max() > 1:
        if not 0 <= accuracies.min() <= accuracies.max() <= 100:
            raise FitError(
                f"{task} is between {accuracies.min():g} and {accuracies.max():g}: write shares or percent"
            )
        accuracies = accuracies / 100
        message = f"{task} has values above 1, so it is read as percent"
        diagnostics.append(Diagnostic(code="task-percent", message=message, severity="note"))
    used = [run for run in runs if run.id in values]
    scores = TaskScores(
        task=task,
        via=via,
        ids=tuple(run.id for run in used),
        params=np.array([run.params for run in used]),
        tokens=np.array([run.tokens for run in used]),
        flops=np.array([run.flops for run in used]),
        loss=np.array([values[run.id][1] for run in used]),
        accuracy=accuracies,
        trajectories=tuple(run.trajectory or run.id for run in used),
        main_loss=np.array([run.loss for run in used]),
    )
    return ScoreTable(scores, excluded, diagnostics)


def _read_runs(
    path: Path, via: str, columns: dict[str, str], where: Mapping[str, str] | None, options: Mapping[str, Any]
) -> RunTable:
    """The table; if it has no column of losses but a loss of step 1, this one takes the role of the loss."""
    try:
        return read_table(path, columns, where, **options)
    except FitError as error:
        if via == LOSS or "loss" in columns or "no column for loss" not in str(error):
            raise
        return read_table(path, {**columns, "loss": via}, where, **options)


def _number_format(table: RunTable, columns: Sequence[str], decimal: str | None) -> NumberFormat:
    cells = (
        (place, column, _without_percent(row.get(column)))
        for place, row in table.cells.items()
        for column in columns
        if column != LOSS
    )
    return decide_format(cells, decimal, columns[0])


def _without_percent(cell: Any) -> Any:
    return cell.strip().removesuffix("%").rstrip() if isinstance(cell, str) else cell


def _default_via(task: str, names: Sequence[str]) -> str:
    for word in _LOSS_WORDS:
        sibling = _ACCURACY_WORD.sub(word, task)
        if sibling != task and sibling in names:
            return sibling
    return LOSS


def _find_name(name: str, names: Sequence[str], problem: str) -> str:
    """The name as in ``names``, in any case. Raises FitError with the nearest name and all names."""
    by_name = {other.strip().lower(): other for other in reversed(names)}
    match = name if name in names else by_name.get(name.strip().lower())
    if match is not None:
        return match
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    shown = ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
    raise FitError(f"{problem} {name!r}{hint} It has: {shown or 'none'}")
