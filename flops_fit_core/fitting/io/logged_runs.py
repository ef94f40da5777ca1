"""Turns logs of runs into rows: one row per evaluation, with the tokens and FLOPs at that step.

Trackers log values apart: an evaluation often has a row without the count of tokens. Rows of one step are merged,
and counts at a step without a value are read between the logged steps. A count that is uncertain by more than 2%
stays missing, so that the row is left out with its reason.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.extent import check_extent, check_names
from flops_fit_core.fitting.io.files import RawTable
from flops_fit_core.fitting.io.histories import Row
from flops_fit_core.fitting.io.json_records import flatten_cells
from flops_fit_core.fitting.io.names import (
    HELD_OUT,
    LETTERS,
    LOSS,
    NAMES,
    NO_LOSS,
    TRAINING,
    normalise_name,
    split_words,
)
from flops_fit_core.fitting.io.numbers import NumberFormat
from flops_fit_core.fitting.io.run_settings import run_settings
from flops_fit_core.plugins.protocols import LoggedRun
from flops_fit_core.records import Diagnostic

RUN_ID = "run_id"
CALLS = "_step"
"""The step of W&B, which may count calls of its log function instead of training steps."""
STEPS = ("trainer/global_step", "train/global_step", "global_step", "step", "iteration", "iter", CALLS)
"""Names of the training step, best first."""

_COUNTERS = frozenset(
    (
        *("token", "tokens", "flop", "flops", "flos", "gflops", "tflops", "pflops", "step", "steps", "iter"),
        *("iters", "iteration", "iterations", "sample", "samples", "example", "examples", "images", "epoch"),
    )
)
_NO_COUNTER = frozenset(("per", "sec", "second", "seconds", "s", "log"))
_QUANTITIES = (
    LOSS | HELD_OUT | {"entropy", "bpb", "bpc", "bits", "ppl", "perplexity", "param", "params", "compute"}
)
_SETTINGS = frozenset(
    (
        *("param", "params", "parameter", "parameters", "batch", "seq", "sequence", "context", "block", "length"),
        *("accumulation", "world", "devices", "gpus", "nodes", "seed", "tokens", "flops", "vocab"),
    )
)
"""Words in names of settings that are kept even if all runs have one value."""
_TOLERANCE = 0.02
"""Largest uncertainty of a count between or after logged steps, relative to the count."""
_EARLY = 0.95
"""A last evaluation before this share of the steps is reported."""
_LETTERS = frozenset((*LETTERS.values(), *(letter.upper() for letter in LETTERS.values())))


@dataclass(frozen=True)
class LoggedTable:
    """The rows of logs, and facts for checks of the columns that are chosen from them."""

    raw: RawTable
    diagnostics: list[Diagnostic]
    no_counts: dict[str, str]
    """Names of values that do not grow with the steps -> an example."""


@dataclass
class _Run:
    """The rows of a run by step, and its settings."""

    id: str
    settings: dict[str, Any]
    status: str
    rows: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """(step, values), sorted by step."""
    step_name: str = ""
    no_counts: dict[str, str] = field(default_factory=dict)


def tabulate_runs(path: Path, runs: Iterable[LoggedRun], columns: Collection[str] = ()) -> LoggedTable:
    """One row per evaluation of each run, with its settings; a run without a loss has one row.

    Args:
        path: The source, for messages.
        runs: The runs of a reader.
        columns: Columns that the user names; they are kept whatever their names are.

    Raises FitError if there is no run, or for more rows, columns or cells than a table may have.
    """
    read, names, problems, cells = [], dict[str, None](), list[str](), 0
    for logged in runs:
        run, run_problems = _read_run(path, logged, columns, names)
        problems += run_problems
        cells += sum(len(values) for _, values in run.rows)
        check_extent(path, cells=cells, columns=len(names))
        read.append(run)
    if not read:
        raise FitError(f"{path}: the logs have no run")
    check_names(path, names)
    notes = [Diagnostic(code="settings", message=text) for text in problems[:5]]
    losses = _loss_columns(names, columns)
    held_out = {name for name in losses if split_words(name) & HELD_OUT} | (losses & set(columns))
    chosen = held_out or losses
    for run in read:
        run.status = "diverged" if _is_diverged(run, losses - held_out) else run.status
    kept = [key for key in _kept_settings(read, columns) if key not in names]
    header = [RUN_ID, *(["status"] if any(run.status for run in read) else []), *names, *kept]
    rows: list[tuple[str, dict[str, Any]]] = []
    for run in read:
        settings = {RUN_ID: run.id, "status": run.status, **run.settings}
        evaluations = _evaluations(run, chosen)
        check_extent(path, len(rows) + len(evaluations), 0, (len(rows) + len(evaluations)) * len(header))
        for step, values in evaluations:
            cells_of_row = {name: values.get(name, settings.get(name)) for name in header}
            rows.append((f"{run.id} step {step:.10g}", cells_of_row))
    no_counts = {name: example for run in reversed(read) for name, example in run.no_counts.items()}
    return LoggedTable(RawTable(header, rows), [*notes, *_report_early(read, chosen)], no_counts)


def check_counts(
    path: Path, table: LoggedTable, by_role: Mapping[str, str], user_columns: Mapping[str, str]
) -> list[Diagnostic]:
    """A note if D is one number per run instead of a count at each evaluation.

    Raises FitError for a value with the name of a count that does not grow with the steps, and for one D per run
    if every evaluation is fitted.
    """
    for role in ("tokens", "flops"):
        name = by_role.get(role, "")
        if role not in user_columns and name in table.no_counts:
            raise FitError(
                f"{path}: {name!r} does not grow with the steps ({table.no_counts[name]}), so it does not count "
                f"the {role} since the start of a run: write --column {role}=COLUMN, or a product such as "
                f"--column '{role}=step*{name}' if it counts those of one step"
            )
    counts: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for _, row in table.raw.rows:
        counts.setdefault(row[RUN_ID], set()).add(str(row.get(by_role["tokens"])))
        sizes[row[RUN_ID]] = sizes.get(row[RUN_ID], 0) + 1
    several = [run for run, size in sizes.items() if size > 1]
    if not several or any(len(counts[run]) > 1 for run in several):
        return []
    fact = f"column {by_role['tokens']!r} has one number per run"
    if "trajectory" in by_role:
        raise FitError(f"{path}: {fact}, so D of an earlier evaluation is unknown: omit --column trajectory")
    message = f"{fact}: it must count the tokens at the last evaluation"
    return [Diagnostic(code="columns", message=message, severity="note")]


def last_rows_of_unusable_runs(rows: Sequence[Row]) -> list[Row]:
    """The rows, with only the last row of each run that has no usable row."""
    usable = {row.values[RUN_ID] for row in rows if row.observation is not None}
    last = {row.values[RUN_ID]: row.place for row in rows}
    return [row for row in rows if row.values[RUN_ID] in usable or row.place == last[row.values[RUN_ID]]]


def _read_run(
    path: Path, logged: LoggedRun, columns: Collection[str], names: dict[str, None]
) -> tuple[_Run, list[str]]:
    """Merge the rows of one step, fill in counts, and add the names of kept values to ``names``."""
    settings, problems = run_settings(logged)
    history = _kept_history(path, logged, columns)
    run = _Run(logged.id, settings, logged.status)
    run.step_name = _step_name(history)
    merged: dict[float, dict[str, Any]] = {}
    for number, values in enumerate(history):
        step = NumberFormat().number_or_nan(values.get(run.step_name)) if run.step_name else float(number)
        if not math.isnan(step):
            merged.setdefault(step, {}).update(values)
    run.rows = sorted(merged.items())
    for _, values in run.rows:
        names.update(dict.fromkeys(values))
    for name in {name for _, values in run.rows for name in values}:
        if name != run.step_name and (_is_counter(name) or name in columns):
            _fill_counter(run, name)
    return run, problems


def _kept_history(path: Path, logged: LoggedRun, columns: Collection[str]) -> list[dict[str, Any]]:
    """The rows of a run, with the values that may have a role. Raises FitError above the limits of a table."""
    history, cells = [], 0
    kept: dict[str, bool] = {}
    for point in logged.history:
        values = {}
        for name, value in flatten_cells(point):
            if name not in kept:
                kept[name] = _is_kept(name, columns)
                check_extent(path, columns=len(kept))
            if kept[name] and isinstance(value, str | int | float):
                values[name] = _cell(value)
        if values:
            history.append(values)
            cells += len(values)
            check_extent(path, cells=cells)
    return history


def _cell(value: str | float) -> str | float:
    """NaN as text: a logged NaN is a diverged loss, and an empty cell is a value that was not logged."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _is_kept(name: str, columns: Collection[str]) -> bool:
    words = split_words(name)
    return name in columns or bool(words & (_QUANTITIES | _COUNTERS)) or normalise_name(name) in _ROLE_NAMES


_ROLE_NAMES = frozenset(name for ranks in NAMES.values() for rank in ranks for name in rank) - _LETTERS


def _is_counter(name: str) -> bool:
    words = split_words(name)
    return bool(words & _COUNTERS) and not words & (_NO_COUNTER | LOSS)


def _step_name(history: Sequence[Mapping[str, Any]]) -> str:
    """The name of the step that every row with a loss has; otherwise that most rows have."""
    counts: dict[str, int] = {}
    with_loss: dict[str, int] = {}
    losses = 0
    for values in history:
        has_loss = any(split_words(name) & LOSS for name in values)
        losses += has_loss
        for name in values:
            counts[name] = counts.get(name, 0) + 1
            with_loss[name] = with_loss.get(name, 0) + has_loss
    by_name = {name.lower(): name for name in reversed(list(counts))}
    candidates = [by_name[alias] for alias in STEPS if alias in by_name]
    complete = [name for name in candidates if with_loss[name] == losses]
    return next(iter(complete), "") or max(candidates, key=lambda name: counts[name], default="")


def _fill_counter(run: _Run, name: str) -> None:
    """Add the value of a counter to rows without it, if the neighbouring steps determine it within the tolerance.

    Between two logged steps a count is interpolated. After the last one it continues at the last rate, and before
    the first one it is unknown.
    """
    points = [(step, NumberFormat().number_or_nan(values[name])) for step, values in run.rows if name in values]
    counts = [count for _, count in points]
    if len(points) < 2 or any(math.isnan(count) for count in counts):
        return
    if sorted(counts) != counts or (counts[0] == counts[-1] and len(points) > 2):
        end = next((i for i in range(1, len(counts)) if counts[i] < counts[i - 1]), len(counts) - 1)
        (first, before), (last, after) = points[end - 1 if counts[end] < counts[end - 1] else 0], points[end]
        run.no_counts[name] = f"{run.id}: {before:.10g} at step {first:.10g}, {after:.10g} at step {last:.10g}"
        return
    steps = [step for step, _ in points]
    is_proportional = len(points) > 2 and run.step_name not in ("", CALLS) and _is_line(steps, counts)
    for step, values in run.rows:
        if name not in values and (count := _count_at(step, steps, counts, is_proportional)) is not None:
            values[name] = count


def _is_line(steps: Sequence[float], counts: Sequence[float]) -> bool:
    """Whether every step adds the same count, so that the count is known at every step."""
    rate = (counts[-1] - counts[0]) / (steps[-1] - steps[0])
    return all(
        abs(counts[0] + rate * (step - steps[0]) - count) <= 1e-6 * counts[-1]
        for step, count in zip(steps, counts, strict=True)
    )


def _count_at(step: float, steps: Sequence[float], counts: Sequence[float], is_proportional: bool) -> float | None:
    after = bisect.bisect_right(steps, step)
    if after == 0:
        return None
    first = min(after - 1, len(steps) - 2)
    rate = (counts[first + 1] - counts[first]) / (steps[first + 1] - steps[first])
    count = counts[first] + rate * (step - steps[first])
    uncertainty = counts[after] - counts[after - 1] if after < len(steps) else count - counts[-1]
    return count if is_proportional or uncertainty <= _TOLERANCE * count else None


def _loss_columns(names: Iterable[str], columns: Collection[str]) -> set[str]:
    """Names of losses, and names that the user gives to a column without a count."""
    losses = set()
    for name in names:
        words = split_words(name)
        is_loss = bool(words & LOSS or {"cross", "entropy"} <= words) and not words & NO_LOSS
        if is_loss or (name in columns and not _is_counter(name)):
            losses.add(name)
    return losses


def _kept_settings(runs: Sequence[_Run], columns: Collection[str]) -> list[str]:
    """Settings that differ between runs, or whose names have a role. A single letter has no role."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    kept = []
    for key in keys:
        name = normalise_name(key)
        has_role = name in _ROLE_NAMES or bool(split_words(key.rpartition(".")[2]) & _SETTINGS)
        differs = len({str(run.settings.get(key)) for run in runs}) > 1
        if key in columns or has_role or (differs and name not in _LETTERS):
            kept.append(key)
    return kept


def _evaluations(run: _Run, losses: set[str]) -> list[tuple[float, dict[str, Any]]]:
    """The rows with one of these losses; otherwise the last row, so that the run is left out with a reason."""
    rows = [(step, values) for step, values in run.rows if not losses.isdisjoint(values)]
    return rows or (run.rows[-1:] if run.rows else [(0.0, {})])


def _is_diverged(run: _Run, training: Collection[str]) -> bool:
    """Whether the last value of a training loss is not finite."""
    for name in training:
        if split_words(name) & TRAINING or normalise_name(name) == "loss":
            values = [row[name] for _, row in run.rows if name in row]
            if values and str(values[-1]).strip().lower().lstrip("-+") in ("nan", "inf", "infinity"):
                return True
    return False


def _report_early(runs: Sequence[_Run], losses: Collection[str]) -> list[Diagnostic]:
    """Warn about runs with a last evaluation long before their last step."""
    early = []
    for run in runs:
        evaluated = [step for step, values in run.rows if any(name in values for name in losses)]
        if evaluated and run.step_name and evaluated[-1] < _EARLY * run.rows[-1][0]:
            early.append(f"{run.id} (step {evaluated[-1]:.10g} of {run.rows[-1][0]:.10g})")
    if not early:
        return []
    more = f" and {len(early) - 4} more" if len(early) > 4 else ""
    message = (
        f"{len(early)} runs were last evaluated before the end of their training: {', '.join(early[:4])}{more}. A "
        "loss before the learning rate has decayed lies above the loss of a complete run with these tokens"
    )
    return [Diagnostic(code="early-evaluation", message=message)]
