"""Reads loss curves from tables: step, lr and loss, with a column that names the run if there are several."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.curves.curve import LossCurve
from flops_fit_core.fitting.curves.rates import Integers, LearningRates
from flops_fit_core.fitting.curves.shapes import SYNTAX, ScheduleShape
from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.io.files import RawTable, read_raw
from flops_fit_core.fitting.io.histories import find_run_column
from flops_fit_core.fitting.io.names import HELD_OUT, split_words
from flops_fit_core.fitting.io.numbers import NumberFormat, decide_format, is_blank
from flops_fit_core.records import Diagnostic

ROLES = ("step", "lr", "loss", "run", "size")
STEP_NAMES = (
    *("global_step", "trainer/global_step", "train/global_step", "step", "steps"),
    *("iteration", "iter", "update", "updates", "num_updates", "_step"),
)
"""Names of the step column, best first. ``step`` may count within an epoch, and ``_step`` of W&B counts calls of
``log``."""
LR_NAME = re.compile(r"(?:.*[/.\s_-])?(?:lr|learning[_ -]?rate)(?:[-/ ].*|s|_?\d+|_group_?\d+)?", re.IGNORECASE)
LOSS_NAME = re.compile(r"(?:.*[/.\s_-])?(?:loss|ce_loss|cross[_ -]?entropy)(?:_epoch|_step)?", re.IGNORECASE)
NOT_LOSS = re.compile(r"__(?:min|max)$|scale|aux|z_loss|lb_loss|load_balanc", re.IGNORECASE)
SIZE_NAMES = ("size", "model_size", "params", "n_params", "parameters", "num_params", "N")
MISMATCH = 0.02
"""The largest difference between a logged rate and the schedule, as a share of the peak."""


@dataclass(frozen=True)
class CurveTable:
    """The curves of a table."""

    curves: list[LossCurve]
    diagnostics: list[Diagnostic] = field(default_factory=list)
    """The columns read, and rows that are left out."""
    excluded: dict[str, str] = field(default_factory=dict)
    """Run -> reason why it has no curve."""


@dataclass
class _RunRows:
    """The rows of one run, in the order of the table."""

    size: str = ""
    steps: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """NaN in a row without a rate."""
    losses: list[float] = field(default_factory=list)
    """NaN in a row without a loss."""


def read_curves(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    schedule: ScheduleShape | None = None,
    decimal: str | None = None,
) -> CurveTable:
    """The loss curves in a table (CSV, TSV, JSON, JSON lines, parquet).

    Rows with a step and a rate give the schedule, also after the last loss: these are the planned updates. Rows
    with a step and a loss give the losses. Rows of one run may be in any order. If a run was resumed, so that its
    steps go back, the later rows replace the earlier ones.

    Args:
        path: The table.
        columns: Role -> column, for ``step``, ``lr``, ``loss``, ``run`` (curves of several runs) and ``size``
            (runs with different values do not share a law).
        schedule: The planned schedule of every run. It continues the logged rates, or replaces a missing column
            of rates.
        decimal: The decimal sign, if the table does not show it.

    Raises FitError for a table without these columns, or with several that may be meant.
    """
    path = Path(path)
    raw = read_raw(path)
    by_role = _choose_columns(path, raw, columns or {}, needs_rates=schedule is None)
    numbers = _number_format(path, raw, by_role, decimal)
    runs = _group_rows(path, raw, by_role, numbers)
    notes, reasons = Counter[str](), {}
    curves = []
    for name, rows in runs.items():
        try:
            curves.append(_make_curve(name, rows, schedule, notes))
        except FitError as error:
            reasons[name] = str(error)
    if not curves:
        raise FitError(f"{path}: no run has a loss curve. {next(iter(reasons.values()), 'The table has no rows')}")
    shown = ", ".join(f"{role} = {column!r}" for role, column in by_role.items())
    rows_used = sum(len(curve.steps) for curve in curves)
    text = f"read {path.name}: {shown}; {len(curves)} {_plural(len(curves), 'curve')} with {rows_used} losses"
    messages = [text, *(f"{count} {note}" for note, count in notes.items())]
    diagnostics = [Diagnostic(code="curves", message=message, severity="note") for message in messages]
    return CurveTable(curves, diagnostics, reasons)


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


# ---------------------------------------------------------------------------- columns


def _choose_columns(path: Path, raw: RawTable, user: Mapping[str, str], *, needs_rates: bool) -> dict[str, str]:
    by_role = {}
    for role, column in user.items():
        if role not in ROLES:
            raise FitError(f"unknown role {role!r}; valid roles of a curve: {', '.join(ROLES)}")
        if column not in raw.header:
            close = difflib.get_close_matches(column, raw.header, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise FitError(f"{path} has no column {column!r}{hint} It has: {', '.join(raw.header)}")
        by_role[role] = column
    lower = {name.strip().lower(): name for name in reversed(raw.header)}
    if "step" not in by_role:
        by_role["step"] = _find_step(path, raw, lower)
    if "lr" not in by_role and (rates := [name for name in raw.header if LR_NAME.fullmatch(name)]):
        by_role["lr"] = _only(path, raw, "lr", rates)
    if "lr" not in by_role and needs_rates:
        raise FitError(
            f"{path} has no column of learning rates; it has: {', '.join(raw.header)}. Name it with --column "
            f"lr=COLUMN, or give the schedule with --schedule {SYNTAX}"
        )
    if "loss" not in by_role:
        losses = [name for name in raw.header if LOSS_NAME.fullmatch(name) and not NOT_LOSS.search(name)]
        held_out = [name for name in losses if split_words(name) & HELD_OUT]
        by_role["loss"] = _only(path, raw, "loss", held_out or losses)
    run = find_run_column(raw.header, by_role.get("run"))
    if run is not None and run not in by_role.values():
        by_role["run"] = run
    size = next((lower[name.lower()] for name in SIZE_NAMES if name.lower() in lower), None)
    if "size" not in by_role and size is not None and size not in by_role.values():
        by_role["size"] = size
    return {role: by_role[role] for role in ROLES if role in by_role}


def _find_step(path: Path, raw: RawTable, lower: Mapping[str, str]) -> str:
    for name in STEP_NAMES:
        if name in lower:
            return lower[name]
    raise FitError(
        f"{path} has no column of steps; it has: {', '.join(raw.header)}. Name it with --column step=COLUMN. "
        "Steps are numbers of optimizer updates: divide tokens by the tokens per update first"
    )


def _only(path: Path, raw: RawTable, role: str, names: Sequence[str]) -> str:
    """The only column of a role, or the first of columns with the same cells (parameter groups with equal
    rates)."""
    if not names:
        raise FitError(
            f"{path} has no column of {role}; it has: {', '.join(raw.header)}. Name it with --column {role}=COLUMN"
        )
    cells = {name: [row.get(name) for _, row in raw.rows] for name in names}
    if any(list(map(str, cells[name])) != list(map(str, cells[names[0]])) for name in names[1:]):
        raise FitError(
            f"{path} has several columns that may be the {role}: {', '.join(names)}. Choose with --column "
            f"{role}={names[-1]!r}"
        )
    return names[0]


# ---------------------------------------------------------------------------- rows


def _number_format(path: Path, raw: RawTable, by_role: Mapping[str, str], decimal: str | None) -> NumberFormat:
    columns = [by_role[role] for role in ("step", "lr", "loss") if role in by_role]
    cells = ((place, column, _strip_percent(row.get(column))) for place, row in raw.rows for column in columns)
    try:
        return decide_format(cells, decimal, by_role["loss"])
    except FitError as error:
        raise FitError(f"{path}: {error}") from None


def _strip_percent(cell: Any) -> Any:
    return cell.strip().removesuffix("%").strip() if isinstance(cell, str) else cell


def _group_rows(
    path: Path, raw: RawTable, by_role: Mapping[str, str], numbers: NumberFormat
) -> dict[str, _RunRows]:
    """Rows by run. Raises FitError for steps that are not whole numbers, and for rates in mixed units."""
    runs: dict[str, _RunRows] = defaultdict(_RunRows)
    percent = set()
    for place, row in raw.rows:
        step = numbers.number_or_nan(row.get(by_role["step"]))
        if not np.isfinite(step):
            continue
        if step != int(step) or step < 0:
            raise FitError(
                f"{path}, {place}: {by_role['step']} = {step:g} is not a number of updates. Name the column of "
                "steps with --column step=COLUMN; epochs and tokens are not steps"
            )
        cell = row.get(by_role["lr"]) if "lr" in by_role else None
        if not is_blank(cell):
            percent.add(isinstance(cell, str) and cell.strip().endswith("%"))
        name = "" if "run" not in by_role else str(row.get(by_role["run"]) or "").strip()
        run = runs[name or path.name.partition(".")[0]]
        if "size" in by_role and not is_blank(row.get(by_role["size"])):
            run.size = str(row[by_role["size"]]).strip()
        run.steps.append(step)
        run.rates.append(numbers.number_or_nan(_strip_percent(cell)))
        run.losses.append(numbers.number_or_nan(row.get(by_role["loss"])))
    if len(percent) > 1:
        raise FitError(f"{path}: some cells of {by_role['lr']} are percentages and others are not: use one unit")
    return runs


def _make_curve(name: str, rows: _RunRows, schedule: ScheduleShape | None, notes: Counter[str]) -> LossCurve:
    """The curve of a run. Raises FitError with the reason why it has none."""
    steps, rates, losses = (np.array(column) for column in (rows.steps, rows.rates, rows.losses))
    blank = int(np.sum(~np.isfinite(losses) & ~np.isfinite(rates)))
    if blank:
        notes["rows have neither a rate nor a loss"] += blank
    if np.any(losses <= 0):
        raise FitError(f"run {name}: a loss is 0 or negative; losses are in nats")
    loss_steps, values = _series(name, steps, losses, notes)
    if not len(loss_steps) or loss_steps[-1] < 1:
        raise FitError(f"run {name}: no row has a loss after step 0")
    rate_steps, rate_values = _series(name, steps, rates, Counter())
    schedule_rates = _schedule(name, rate_steps, rate_values, int(loss_steps[-1]), schedule)
    trained = schedule_rates.sums[np.minimum(loss_steps, schedule_rates.steps)] > 0
    return LossCurve(name, loss_steps[trained], values[trained], schedule_rates, rows.size)


def _series(name: str, steps: Floats, values: Floats, notes: Counter[str]) -> tuple[Integers, Floats]:
    """The finite values by distinct steps, each with its last value.

    Losses and rates are two series: a table may have all rates first and all losses after them.
    """
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if not len(steps):
        return steps.astype(np.int64), values
    order = _order(name, steps, notes)
    ordered = steps[order].astype(np.int64)
    is_last = np.append(np.diff(ordered) > 0, True)
    return ordered[is_last], values[order][is_last]


def _order(name: str, steps: Floats, notes: Counter[str]) -> Integers:
    """Indices of the values to use, by step. Values of an attempt that a resume has replaced are left out.

    Steps that go back in few rows are resumes. In a table that is sorted otherwise, every row counts. Raises
    FitError for steps that begin again: they count within an epoch, or the run was started again.
    """
    rows = np.arange(len(steps))
    backward = np.flatnonzero(np.diff(steps) < 0)
    if len(backward) > max(2, 0.05 * len(steps)):
        is_descending = np.all(np.diff(steps) <= 0)
        rows = rows[::-1] if is_descending else rows
        return rows[np.argsort(steps[rows], kind="stable")]
    if len(backward) and steps[backward + 1].min() <= steps[0]:
        restart = steps[backward + 1].min()
        raise FitError(
            f"run {name}: the steps begin again at {restart:g}. If they count within an epoch, use a column that "
            "counts all updates; if the run was started again, remove the earlier rows or give the attempts "
            "different names"
        )
    keep = np.ones(len(steps), dtype=bool)
    for position in backward:
        replaced = keep & (rows <= position) & (steps >= steps[position + 1])
        keep &= ~replaced
        notes["losses are left out: the run was resumed before them"] += int(replaced.sum())
    return rows[keep][np.argsort(steps[keep], kind="stable")]


def _schedule(
    name: str, steps: Integers, rates: Floats, last: int, schedule: ScheduleShape | None
) -> LearningRates:
    """The schedule of a run from its logged rates, the planned schedule, or both."""
    if not len(steps):
        if schedule is None:
            raise FitError(f"run {name}: no row has a learning rate")
        return schedule.rates({"steps": last})
    if rates.max() <= 0 or rates.min() < 0:
        raise FitError(f"run {name}: learning rates must not be negative, and not all 0")
    logged = LearningRates.from_rows(steps, rates, total_steps=max(last, int(steps[-1])))
    if schedule is None:
        return logged
    peak = float(rates.max())
    risen = int(steps[np.argmax(rates >= 0.999 * peak)])
    planned = schedule.rates({"steps": last, "peak": peak, "warmup": float(risen)})
    after_warmup = (steps >= risen) & (steps < planned.steps)
    difference = np.abs(planned.values[steps[after_warmup]] - rates[after_warmup])
    if len(difference) and difference.max() > MISMATCH * peak:
        worst = int(np.argmax(difference))
        step = int(steps[after_warmup][worst])
        raise FitError(
            f"run {name}: the schedule does not match the logged rates: at step {step} the table has "
            f"{rates[after_warmup][worst]:.4g} and the schedule {planned.values[step]:.4g}. Give its steps, "
            "warmup, final and peak as in the training program"
        )
    if planned.steps <= logged.steps:
        return logged
    return LearningRates(np.concatenate([logged.values, planned.values[logged.steps :]]))
