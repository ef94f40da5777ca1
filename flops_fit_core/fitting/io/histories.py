"""Tables with several rows of one training run, as W&B and MLflow export them: the last row of each run counts.

A column names the run: ``run_id``, ``run``, ``id`` or ``name``. Rows of a ``trajectory`` are not joined: there
every row is a point that the caller wants to fit.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
"""``--column id=row``: every row is a run of its own."""


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
    without_flops: bool = False
    """Whether the table has FLOPs, and none for this row."""


@dataclass(frozen=True)
class Joined:
    """Rows after those of one run were joined."""

    rows: list[Row]
    diagnostics: list[Diagnostic]


def run_column(header: Sequence[str], mapped: str | None) -> str | None:
    """The column that names the run of a row, by the choice where ``mapped``; None without one."""
    by_name = {_key(name): name for name in reversed(header)}
    if mapped is not None:
        return mapped if mapped in header else by_name.get(_key(mapped))
    aliases = map(_key, (*RUN_COLUMNS, *NAME_COLUMNS))
    return next((by_name[alias] for alias in aliases if alias in by_name), None)


def mention_steps(rows: Sequence[Row], header: Sequence[str]) -> list[Diagnostic]:
    """A note where a table of steps names no runs: rows of one N may be runs, or checkpoints of one run."""
    step = _step_column(header)
    counts: dict[float, set[float]] = defaultdict(set)
    for row in rows:
        if row.observation is not None and step is not None:
            counts[row.observation.params].add(_number(row.values.get(step)))
    if not any(len(steps) > 2 for steps in counts.values()):
        return []
    message = (
        f"rows of one N differ in {step!r}, and no column names the run: every row is taken as a run of its own; "
        "where they are checkpoints, name the run with --column id=COLUMN (its last row counts) or --column "
        "trajectory=COLUMN"
    )
    return [Diagnostic(code="histories", message=message, severity="note")]


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


def join_histories(
    path: Path, rows: Sequence[Row], column: str, header: Sequence[str], *, is_mapped: bool
) -> Joined:
    """Keep the last usable row of each run that ``column`` names.

    Rows of one run have one N and one seed. Where a name has several and the table has steps, each N and seed is a
    run; where all names have several and there are no steps, the column names no runs, and all rows stay. A run
    whose loss is not finite after its last usable row has diverged and is left out.

    Raises FitError where the last row is not determined, or where it is open which rows are one run.
    """
    step = _step_column(header)
    histories = _histories(rows, lambda row: _text(row.values.get(column)))
    if not histories:
        return Joined(list(rows), [])
    several = [name for name, group in histories.items() if not _is_one_model(group)]
    if several and step is not None:
        histories = _histories(rows, lambda row: _model_of(row, column))
    elif several and len(several) < len(histories):
        raise FitError(_mixed(path, column, several))
    if not histories or (several and step is None):
        return Joined(list(rows), [_not_runs(column, several)])
    is_name = column.strip().lower() in NAME_COLUMNS and not is_mapped
    if is_name and step is None and max(map(_usable, histories.values())) > 1:
        raise FitError(_open_question(path, column, histories))
    ends = [_last_row(path, group, column, step) for group in histories.values()]
    by_place = {end.place: end for end in ends}
    joined = {row.place for group in histories.values() for row in group}
    kept = [by_place.get(row.place, row) for row in rows if row.place not in joined or row.place in by_place]
    keep_all = f"--column {shlex.quote(f'trajectory={column}')}"
    message = (
        f"{len(joined)} rows are of {len(ends)} training runs (column {column!r}): the last row of each counts, "
        f"and the {len(joined) - len(ends)} earlier ones are left out; {keep_all} keeps every row, "
        f"as points of one training run"
    )
    return Joined(kept, [Diagnostic(code="histories", message=message, severity="note")])


def _histories(rows: Sequence[Row], name_of: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Rows of one name, where there are several."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[name_of(row)].append(row)
    return {name: group for name, group in groups.items() if name and _is_history(group)}


def _model_of(row: Row, column: str) -> str:
    """The row's name with its N and seed; empty for a row that cannot be used."""
    name, observation = _text(row.values.get(column)), row.observation
    return f"{name} N={observation.params:.9g} seed={observation.seed}" if name and observation is not None else ""


def about_trajectories(observations: Sequence[Observation]) -> list[Diagnostic]:
    """A note where several rows are of one trajectory."""
    names = [observation.trajectory for observation in observations if observation.trajectory is not None]
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
        math.isclose(observation.params, first.params, rel_tol=1e-9) and observation.seed == first.seed
        for observation in observations
    )


def _step_column(header: Sequence[str]) -> str | None:
    by_name = {name.strip().lower(): name for name in reversed(header)}
    return next((by_name[alias] for alias in STEP_COLUMNS if alias in by_name), None)


def _last_row(path: Path, group: Sequence[Row], column: str, step: str | None) -> Row:
    """The row that counts; without an observation where the run diverged after it."""
    usable = [row for row in group if row.observation is not None]
    order = {id(row): _order(row, step) for row in usable}
    end = max(order.values())
    ends = [row for row in usable if order[id(row)] == end]
    if len(ends) > 1:
        raise FitError(_several_ends(path, ends, column))
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


def _several_ends(path: Path, ends: Sequence[Row], column: str) -> str:
    name = _text(ends[0].values.get(column))
    others = [
        key for key in ends[0].values if key != column and len({_text(row.values.get(key)) for row in ends}) > 1
    ]
    kinds = [key for key in others if _text(ends[0].values.get(key)) and not _is_number(ends[0].values.get(key))]
    example = f"--filter {kinds[0]}={_text(ends[0].values.get(kinds[0]))}" if kinds else "--filter COLUMN=TEXT"
    places = ", ".join(row.place for row in ends[:4]) + (", ..." if len(ends) > 4 else "")
    return (
        f"{path}: {places} are of one run ({column} = {name}) with one D and different losses, so the run's loss "
        f"is not determined; they differ in {', '.join(others)}. Keep one kind of row with {example}, name each "
        f"run with --column id=COLUMN, or write --column id={ROWS} where every row is a run of its own"
    )


def _open_question(path: Path, column: str, histories: Mapping[str, Sequence[Row]]) -> str:
    name, group = next(iter(histories.items()))
    return (
        f"{path}: {_usable(group)} rows have {column} = {name!r} and one N: points of one training run, or "
        f"separate runs? Write --column id={column} for one run (its last row counts), --column "
        f"trajectory={column} to fit every point of it, or --column id={ROWS} if every row is a separate run"
    )


def _mixed(path: Path, column: str, several: Sequence[str]) -> str:
    shown = ", ".join(several[:3]) + (", ..." if len(several) > 3 else "")
    return (
        f"{path}: some names in column {column!r} have rows of several N or seeds ({shown}), and others several "
        f"rows of one, so it is open which rows are one run: name each run with --column id=COLUMN, or write "
        f"--column id={ROWS} where every row is a run of its own"
    )


def _not_runs(column: str, several: Sequence[str]) -> Diagnostic:
    shown = ", ".join(several[:3]) + (", ..." if len(several) > 3 else "")
    message = (
        f"column {column!r} has rows of several N or seeds under one name ({shown}), so it does not name training "
        f"runs: every row is taken as a run of its own"
    )
    return Diagnostic(code="histories", message=message, severity="note")


def _is_number(value: Any) -> bool:
    return _number(value) > -math.inf


def _number(value: Any) -> float:
    try:
        number = float(str(value))
    except ValueError:
        return -math.inf
    return number if math.isfinite(number) else -math.inf


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()
