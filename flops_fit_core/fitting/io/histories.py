"""Tables with several rows per training run, as W&B and MLflow export them: the last row of each run counts.

A column names the run: ``run_id``, ``run``, ``id`` or ``name``. Rows of a ``trajectory`` are not joined: every row
is a point to fit.
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
"""Columns that identify a training run, best first."""
NAME_COLUMNS = ("run_name", "run name", "display_name", "name")
"""Columns that name a run in W&B, but may name a size or an architecture in other tables."""
STEP_COLUMNS = (
    *("_step", "step", "global_step", "trainer/global_step", "train/global_step", "iteration", "iter"),
    *("_timestamp", "timestamp"),
)
"""Columns that order the rows of a run, best first."""
ROWS = "row"
"""``--column id=row``: every row is a separate run."""


@dataclass(frozen=True)
class Row:
    """A row of a table, and its observation or the reason why it has none."""

    place: str
    """``row 17``."""
    values: Mapping[str, Any]
    """Column -> cell."""
    observation: Observation | None = None
    """None if the row cannot be used."""
    reason: str = ""
    """Why it cannot be used."""
    loss: Any = None
    """Cell of the loss column, unparsed."""
    without_flops: bool = False
    """Whether the table has FLOPs, but not for this row."""


@dataclass(frozen=True)
class JoinedRows:
    """Rows after joining the rows of each run."""

    rows: list[Row]
    diagnostics: list[Diagnostic]


def find_run_column(header: Sequence[str], mapped: str | None) -> str | None:
    """The column that names the run of a row: ``mapped`` if given or by its name; None if no column matches."""
    by_name = {_normalise(name): name for name in reversed(header)}
    if mapped is not None:
        return mapped if mapped in header else by_name.get(_normalise(mapped))
    aliases = map(_normalise, (*RUN_COLUMNS, *NAME_COLUMNS))
    return next((by_name[alias] for alias in aliases if alias in by_name), None)


def check_steps(rows: Sequence[Row], header: Sequence[str]) -> list[Diagnostic]:
    """A note for tables with steps but no run names: rows of equal N may be runs, or checkpoints of a run."""
    step = _step_column(header)
    counts: dict[float, set[float]] = defaultdict(set)
    for row in rows:
        if row.observation is not None and step is not None:
            counts[row.observation.params].add(_number(row.values.get(step)))
    if not any(len(steps) > 2 for steps in counts.values()):
        return []
    message = (
        f"rows of equal N differ in {step!r}, and no column names the run, so every row counts as a separate run; "
        "if they are checkpoints, name the run with --column id=COLUMN (its last row counts) or --column "
        "trajectory=COLUMN"
    )
    return [Diagnostic(code="histories", message=message, severity="note")]


def _normalise(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


def join_histories(
    path: Path, rows: Sequence[Row], column: str, header: Sequence[str], *, is_mapped: bool
) -> JoinedRows:
    """Keep the last usable row of each run that ``column`` names.

    Rows of a run have equal N and seed. If a name has several N or seeds and the table has steps, each N and seed
    is a run. If all names have several and there are no steps, the column does not name runs, and all rows are
    kept. A run with a non-finite loss after its last usable row has diverged and is left out.

    Raises FitError if the last row of a run, or the rows that belong to a run, cannot be determined.
    """
    step = _step_column(header)
    histories = _histories(rows, lambda row: _cell_text(row.values.get(column)))
    if not histories:
        return JoinedRows(list(rows), [])
    ambiguous = [name for name, group in histories.items() if not _is_single_model(group)]
    if ambiguous and step is not None:
        histories = _histories(rows, lambda row: _model_key(row, column))
    elif ambiguous and len(ambiguous) < len(histories):
        raise FitError(_describe_mixed_names(path, column, ambiguous))
    if not histories or (ambiguous and step is None):
        return JoinedRows(list(rows), [_report_not_runs(column, ambiguous)])
    is_name = column.strip().lower() in NAME_COLUMNS and not is_mapped
    if is_name and step is None and max(map(_count_usable, histories.values())) > 1:
        raise FitError(_describe_ambiguous_name(path, column, histories))
    last_rows = [_last_row(path, group, column, step) for group in histories.values()]
    by_place = {end.place: end for end in last_rows}
    places = {row.place for group in histories.values() for row in group}
    joined_rows = [
        by_place.get(row.place, row) for row in rows if row.place not in places or row.place in by_place
    ]
    keep_all = f"--column {shlex.quote(f'trajectory={column}')}"
    message = (
        f"{len(places)} rows belong to {len(last_rows)} training runs (column {column!r}): the last row of each "
        f"counts, and the {len(places) - len(last_rows)} earlier rows are left out; {keep_all} keeps every "
        f"row, as a point of its training run"
    )
    return JoinedRows(joined_rows, [Diagnostic(code="histories", message=message, severity="note")])


def _histories(rows: Sequence[Row], name_of: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Group rows by name; keep groups that are histories."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[name_of(row)].append(row)
    return {name: group for name, group in groups.items() if name and _is_history(group)}


def _model_key(row: Row, column: str) -> str:
    """The row's name with its N and seed; empty for unusable rows."""
    name, observation = _cell_text(row.values.get(column)), row.observation
    return f"{name} N={observation.params:.9g} seed={observation.seed}" if name and observation is not None else ""


def check_trajectories(observations: Sequence[Observation]) -> list[Diagnostic]:
    """A note if a trajectory has several rows."""
    names = [observation.trajectory for observation in observations if observation.trajectory is not None]
    if len(set(names)) == len(names):
        return []
    message = (
        f"{len(names)} rows are points of {len(set(names))} training runs (column trajectory): every row counts, "
        f"with an error shared by the rows of a run; a loss measured before the learning rate has decayed lies "
        f"above the final loss of a run of that length"
    )
    return [Diagnostic(code="trajectories", message=message, severity="note")]


def _is_history(group: Sequence[Row]) -> bool:
    """Whether rows with the same name are several points of a run; some may have no loss."""
    without_loss = sum(row.reason.startswith("loss is") for row in group)
    return _count_usable(group) > 0 and _count_usable(group) + without_loss > 1


def _count_usable(group: Sequence[Row]) -> int:
    return sum(row.observation is not None for row in group)


def _is_single_model(group: Sequence[Row]) -> bool:
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
    """The row that counts; without an observation if the run diverged after it."""
    usable = [row for row in group if row.observation is not None]
    order = {id(row): _sort_key(row, step) for row in usable}
    latest = max(order.values())
    candidates = [row for row in usable if order[id(row)] == latest]
    if len(candidates) > 1:
        raise FitError(_describe_tied_rows(path, candidates, column))
    (last,) = candidates
    assert last.observation is not None
    if diverged := _find_divergence(group, last):
        reason = f"its loss is not finite in {diverged.place}, after the last usable row, so it diverged"
        return Row(last.place, last.values, reason=reason)
    return last


def _find_divergence(group: Sequence[Row], last: Row) -> Row | None:
    """The first row with a non-finite loss after the last usable row, otherwise None.

    If rows with a non-finite loss also lie between usable rows, they mean that the loss was not evaluated.
    """
    place = next(number for number, row in enumerate(group) if row is last)
    if any(_is_not_finite(row) for row in group[:place]):
        return None
    return next((row for row in group[place + 1 :] if _is_not_finite(row)), None)


def _sort_key(row: Row, step: str | None) -> tuple[float, float]:
    """Sort by tokens, then by step: a run restarted from a checkpoint has the same D at several steps."""
    assert row.observation is not None
    number = -math.inf if step is None else _number(row.values.get(step))
    return row.observation.tokens, number


def _is_not_finite(row: Row) -> bool:
    """Whether the loss is written as not finite. Blank cells, NaN in parquet, were not evaluated."""
    is_text_nan = row.reason == "loss is nan" and isinstance(row.loss, str)
    return is_text_nan or row.reason in ("loss is inf", "loss is -inf")


def _describe_tied_rows(path: Path, rows: Sequence[Row], column: str) -> str:
    name = _cell_text(rows[0].values.get(column))
    differing = [
        key
        for key in rows[0].values
        if key != column and len({_cell_text(row.values.get(key)) for row in rows}) > 1
    ]
    text_columns = [
        key for key in differing if _cell_text(rows[0].values.get(key)) and not _is_number(rows[0].values.get(key))
    ]
    example = (
        f"--filter {text_columns[0]}={_cell_text(rows[0].values.get(text_columns[0]))}"
        if text_columns
        else "--filter COLUMN=TEXT"
    )
    labels = ", ".join(row.place for row in rows[:4]) + (", ..." if len(rows) > 4 else "")
    return (
        f"{path}: {labels} belong to the same run ({column} = {name}) and have equal D but different losses, so "
        f"the loss of the run is not determined; they differ in {', '.join(differing)}. Select one kind of row "
        f"with {example}, name each run with --column id=COLUMN, or write --column id={ROWS} if every row is a "
        "separate run"
    )


def _describe_ambiguous_name(path: Path, column: str, histories: Mapping[str, Sequence[Row]]) -> str:
    name, group = next(iter(histories.items()))
    return (
        f"{path}: {_count_usable(group)} rows have {column} = {name!r} and equal N: points of one training run, "
        f"or separate runs? Write --column id={column} for one run (its last row counts), --column "
        f"trajectory={column} to fit every point of the run, or --column id={ROWS} for separate runs"
    )


def _describe_mixed_names(path: Path, column: str, ambiguous: Sequence[str]) -> str:
    names = ", ".join(ambiguous[:3]) + (", ..." if len(ambiguous) > 3 else "")
    return (
        f"{path}: some names in column {column!r} have rows with several N or seeds ({names}), while others have "
        f"several rows with equal N and seed, so runs cannot be identified: name each run with --column "
        f"id=COLUMN, or write --column id={ROWS} if every row is a separate run"
    )


def _report_not_runs(column: str, ambiguous: Sequence[str]) -> Diagnostic:
    names = ", ".join(ambiguous[:3]) + (", ..." if len(ambiguous) > 3 else "")
    message = (
        f"column {column!r} has rows with several N or seeds under the same name ({names}), so it does not name "
        f"training runs: every row counts as a separate run"
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


def _cell_text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()
