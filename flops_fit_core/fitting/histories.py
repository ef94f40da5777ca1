"""Tables with several rows of one training run, as W&B and MLflow export them: the last row of each run counts.

A column names the run: ``run_id``, ``run``, ``id`` or ``name``. Rows of a ``trajectory`` are not joined: there
every row is a point that the caller wants to fit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError
from flops_fit_core.records import Diagnostic, Observation

RUN_COLUMNS = ("run_id", "run id", "run_uuid", "wandb_run_id", "run", "id")
"""Columns that name one training run, best first."""
NAME_COLUMNS = ("run_name", "run name", "display_name", "name")
"""Columns that name a run in W&B, and in other tables anything: a size, an architecture."""
STEP_COLUMNS = (
    *("_step", "step", "global_step", "trainer/global_step", "train/global_step", "iteration", "iter"),
    *("_timestamp", "timestamp"),
)
"""Columns that order the rows of a run, best first."""
ROWS = "row"
"""``--map id=row``: every row is a run of its own."""


@dataclass(frozen=True)
class Row:
    """One row of a table: the run that it is of, and what was read from it."""

    place: str
    """``row 17``."""
    values: Mapping[str, Any]
    """Of every column."""
    observation: Observation | None = None
    """None where the row cannot be used."""
    reason: str = ""
    """Why it cannot be used."""
    loss: Any = None
    """As the table writes it."""


@dataclass(frozen=True)
class Joined:
    """Rows after those of one run were joined."""

    rows: list[Row]
    diagnostics: list[Diagnostic]


def run_column(header: Sequence[str], mapped: str | None) -> str | None:
    """The column that names the run of a row, by the caller's choice where ``mapped``; None without one."""
    if mapped is not None:
        return mapped if mapped in header else None
    by_name = {name.strip().lower(): name for name in reversed(header)}
    return next((by_name[alias] for alias in (*RUN_COLUMNS, *NAME_COLUMNS) if alias in by_name), None)


def join_histories(
    path: Path, rows: Sequence[Row], column: str, header: Sequence[str], *, is_mapped: bool
) -> Joined:
    """Keep the last usable row of each run that ``column`` names.

    Rows of one run have one N (and one seed). Where rows of one name have several N, the column names no runs,
    and all rows stay. A run whose loss is not finite after its last usable row has diverged and is left out.

    Raises FitError where the last row is not determined, or where it is open whether rows of one name are one run.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[_text(row.values.get(column))].append(row)
    histories = {name: group for name, group in groups.items() if name and _is_history(group)}
    if not histories:
        return Joined(list(rows), [])
    several = [name for name, group in histories.items() if not _is_one_model(group)]
    if several:
        return Joined(list(rows), [_not_runs(column, several)])
    step = _step_column(header)
    is_name = column.strip().lower() in NAME_COLUMNS and not is_mapped
    if is_name and step is None and max(map(_usable, histories.values())) > 1:
        raise FitError(_open_question(path, column, histories))
    last = {name: _last_row(path, name, group, column, step) for name, group in histories.items()}
    kept = []
    for row in rows:
        end = last.get(_text(row.values.get(column)), row)
        if row.place == end.place:
            kept.append(end)
    used = sum(len(group) for group in histories.values())
    message = (
        f"{used} rows are of {len(histories)} training runs (column {column!r}): the last row of each counts, "
        f"and the {used - len(histories)} earlier ones are left out; --map trajectory={column} keeps every row, "
        f"as points of one training run"
    )
    return Joined(kept, [Diagnostic(code="histories", message=message, severity="note")])


def about_trajectories(observations: Sequence[Observation]) -> list[Diagnostic]:
    """A note where several rows are of one trajectory."""
    names = [one.trajectory for one in observations if one.trajectory is not None]
    if len(set(names)) == len(names):
        return []
    message = (
        f"{len(names)} rows are points of {len(set(names))} training runs (their trajectory): every row counts, "
        f"with an error that rows of one run share; a loss that was measured before the learning rate had decayed "
        f"lies above that of a run of that length"
    )
    return [Diagnostic(code="trajectories", message=message, severity="note")]


def _is_history(group: Sequence[Row]) -> bool:
    """Whether rows of one name are several points of a run, of which some may have no loss."""
    without_loss = sum(row.reason.startswith("loss is") for row in group)
    return _usable(group) > 0 and _usable(group) + without_loss > 1


def _usable(group: Sequence[Row]) -> int:
    return sum(row.observation is not None for row in group)


def _is_one_model(group: Sequence[Row]) -> bool:
    observations = [row.observation for row in group if row.observation is not None]
    first = observations[0]
    return all(
        math.isclose(one.params, first.params, rel_tol=1e-9) and one.seed == first.seed for one in observations
    )


def _step_column(header: Sequence[str]) -> str | None:
    by_name = {name.strip().lower(): name for name in reversed(header)}
    return next((by_name[alias] for alias in STEP_COLUMNS if alias in by_name), None)


def _last_row(path: Path, name: str, group: Sequence[Row], column: str, step: str | None) -> Row:
    """The row that counts; without an observation where the run diverged after it."""
    usable = [row for row in group if row.observation is not None]
    order = {id(row): _order(row, step) for row in usable}
    end = max(order.values())
    ends = [row for row in usable if order[id(row)] == end]
    if len(ends) > 1:
        raise FitError(_several_ends(path, name, ends, column))
    (last,) = ends
    assert last.observation is not None
    if diverged := _diverged(group, last):
        reason = f"its loss is not finite in {diverged.place}, after the last usable row: it diverged"
        return Row(last.place, last.values, reason=reason)
    return last


def _diverged(group: Sequence[Row], last: Row) -> Row | None:
    """The first row after the last usable one whose loss is not finite; None where there is none.

    Where such rows lie between usable ones, they stand for losses that were not evaluated.
    """
    place = next(number for number, row in enumerate(group) if row is last)
    if any(_is_not_finite(row) for row in group[:place]):
        return None
    return next((row for row in group[place + 1 :] if _is_not_finite(row)), None)


def _order(row: Row, step: str | None) -> tuple[float, float]:
    """By tokens, then by step: a run that was restarted from a checkpoint has one D at several steps."""
    assert row.observation is not None
    number = -math.inf if step is None else _number(row.values.get(step))
    return row.observation.tokens, number


def _is_not_finite(row: Row) -> bool:
    """Whether the loss was written as not finite. An empty cell, which parquet reads as NaN, was not evaluated."""
    is_text_nan = row.reason == "loss is nan" and isinstance(row.loss, str)
    return is_text_nan or row.reason in ("loss is inf", "loss is -inf")


def _several_ends(path: Path, name: str, ends: Sequence[Row], column: str) -> str:
    others = [
        key for key in ends[0].values if key != column and len({_text(row.values.get(key)) for row in ends}) > 1
    ]
    places = ", ".join(row.place for row in ends[:4]) + (", ..." if len(ends) > 4 else "")
    return (
        f"{path}: {places} are of one run ({column} = {name}) with one D and different losses, so the run's loss "
        f"is not determined; they differ in {', '.join(others)}. Keep one kind of row with --where COLUMN=TEXT, "
        f"name each run with --map id=COLUMN, or write --map id={ROWS} where every row is a run of its own"
    )


def _open_question(path: Path, column: str, histories: Mapping[str, Sequence[Row]]) -> str:
    name, group = next(iter(histories.items()))
    return (
        f"{path}: {_usable(group)} rows have {column} = {name!r} and one N: points of one training run, or runs "
        f"of their own? Write --map id={column} for one run, whose last row counts; --map trajectory={column} to "
        f"fit every point of it; --map id={ROWS} where every row is a run of its own"
    )


def _not_runs(column: str, several: Sequence[str]) -> Diagnostic:
    shown = ", ".join(several[:3]) + (", ..." if len(several) > 3 else "")
    message = (
        f"column {column!r} has rows of several N or seeds under one name ({shown}), so it does not name training "
        f"runs: every row is taken as a run of its own"
    )
    return Diagnostic(code="histories", message=message, severity="note")


def _number(value: Any) -> float:
    try:
        number = float(str(value))
    except ValueError:
        return -math.inf
    return number if math.isfinite(number) else -math.inf


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()
