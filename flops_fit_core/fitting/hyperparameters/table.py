"""Read a table of runs over learning rate, batch, N and D."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.hyperparameters.columns import (
    ROLES,
    HyperColumns,
    batch_unit,
    choose_hyper_columns,
)
from flops_fit_core.fitting.hyperparameters.surface import Array
from flops_fit_core.fitting.io.files import read_raw
from flops_fit_core.fitting.io.grids import group_cells, is_hyperparameter, text_columns
from flops_fit_core.fitting.io.histories import Row
from flops_fit_core.fitting.io.names import normalise_name
from flops_fit_core.fitting.io.numbers import NumberFormat
from flops_fit_core.fitting.io.rows import cell_text
from flops_fit_core.fitting.io.tables import RunTable, TableOptions, add_rows, read_rows
from flops_fit_core.records import Diagnostic

MIN_STEPS, MAX_STEPS = 10, 1e7
"""Runs outside these numbers of steps suggest a wrong unit of the batch."""


@dataclass(frozen=True)
class LrBatchTable:
    """Usable runs of a grid. All arrays have one value per run."""

    lr: Array | None
    batch: Array | None
    """In the unit of D: tokens, or samples."""
    params: Array
    tokens: Array
    loss: Array
    cell: Array
    """Number of the cell: runs of one N and one D (within 2%), and equal texts."""
    seeds: int
    """Runs that repeat another run's cell, learning rate and batch."""
    params_column: str
    excluded: dict[str, str]
    diagnostics: tuple[Diagnostic, ...]


def read_lr_batch_table(
    path: Path,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    *,
    units: Mapping[str, str | float] | None = None,
    decimal: str | None = None,
) -> LrBatchTable:
    """The usable runs of a table with columns for N, D, loss, and learning rate or batch or both.

    Reads the same files as :func:`~flops_fit_core.fitting.read_table`. Further roles of columns: ``lr``,
    ``batch``, ``sequence`` (tokens per sequence) and ``steps``. ``units={"batch": "tokens"}`` or
    ``{"batch": 2048}`` gives the factor from the batch column to tokens. Diverged runs (no loss, NaN, infinity)
    are excluded.

    Raises FitError if a column or the unit of the batch is ambiguous, or runs of equal settings differ in another
    hyperparameter.
    """
    path, columns, units = Path(path), dict(columns or {}), dict(units or {})
    hyper = choose_hyper_columns(path, read_raw(path), columns)
    unit = units.pop("batch", None)
    run_columns = {role: column for role, column in columns.items() if role not in ROLES}
    options = TableOptions(run_columns, where or {}, units, decimal, None)
    read = read_rows(path, options, hyper.used)
    rows = [_require_hyper(row, hyper, read.numbers) for row in read.rows]
    table = RunTable([], diagnostics=list(read.diagnostics))
    used = add_rows(path, rows, read, table, options)
    if not used:
        raise FitError(f"{path}: no row can be fitted. {table.summary}")
    by_role = read.mapping.by_role
    others = [
        column
        for column in used[0].values
        if column not in (*by_role.values(), *hyper.used) and is_hyperparameter(column)
    ]
    texts = text_columns(used, _free_columns(used, by_role, hyper, others), read.numbers)
    cells = group_cells(used, texts)
    _refuse_other_hyperparameters(path, cells, hyper, others)
    ordered = [row for cell in cells for row in cell]
    runs = [row.observation for row in ordered if row.observation is not None]
    tokens = np.array([run.tokens for run in runs])
    batch, notes = _batch(path, ordered, hyper, by_role.get("tokens", ""), unit, tokens, read.numbers)
    notes = [*hyper.notes, *notes]
    diagnostics = [item for item in table.diagnostics if item.code not in ("flops-6nd", "steps")]
    diagnostics += [Diagnostic(code="columns", message=text, severity="note") for text in notes]
    diagnostics += _check_steps(batch, tokens, hyper)
    seeds = sum(len(cell) - len({_setting(row, hyper) for row in cell}) for cell in cells)
    return LrBatchTable(
        lr=None if hyper.lr is None else _numbers(ordered, hyper.lr, read.numbers),
        batch=batch,
        params=np.array([run.params for run in runs]),
        tokens=tokens,
        loss=np.array([run.loss for run in runs]),
        cell=np.repeat(np.arange(len(cells)), [len(cell) for cell in cells]),
        seeds=seeds,
        params_column=by_role.get("params", ""),
        excluded=table.excluded,
        diagnostics=tuple(diagnostics),
    )


def _require_hyper(row: Row, hyper: HyperColumns, numbers: NumberFormat) -> Row:
    """The row, or the row without its observation if a hyperparameter is missing or not positive."""
    if row.observation is None:
        return row
    for role, column in (("lr", hyper.lr), ("batch", hyper.batch)):
        if column is None:
            continue
        value = numbers.number_or_nan(row.values.get(column))
        if not value > 0:
            text = cell_text(row.values.get(column))
            reason = f"{role} is {text or 'missing'}; it must be a positive number"
            return Row(row.place, row.values, reason=reason, loss=row.loss)
    return row


def _free_columns(
    used: Sequence[Row], by_role: Mapping[str, str], hyper: HyperColumns, others: Sequence[str]
) -> list[str]:
    return [column for column in used[0].values if column not in (*by_role.values(), *hyper.used, *others)]


def _numbers(rows: Sequence[Row], column: str, numbers: NumberFormat) -> Array:
    return np.array([numbers.number_or_nan(row.values.get(column)) for row in rows])


def _setting(row: Row, hyper: HyperColumns) -> tuple[str, ...]:
    return tuple(cell_text(row.values.get(column)) for column in (hyper.lr, hyper.batch) if column is not None)


def _refuse_other_hyperparameters(
    path: Path, cells: Sequence[Sequence[Row]], hyper: HyperColumns, others: Sequence[str]
) -> None:
    """Raises FitError if runs with equal N, D, learning rate and batch differ in another hyperparameter."""
    for column in others:
        if normalise_name(column) in ("min_lr", "warmup_steps", "warmup_tokens"):
            continue  # these usually follow from the learning rate, the batch or D
        for cell in cells:
            values: dict[tuple[str, ...], set[str]] = defaultdict(set)
            for row in cell:
                values[_setting(row, hyper)].add(cell_text(row.values.get(column)))
            mixed = next((texts for texts in values.values() if len(texts) > 1), None)
            if mixed is not None:
                choices = " or ".join(f"--filter {shlex.quote(f'{column}={text}')}" for text in sorted(mixed)[:4])
                raise FitError(
                    f"{path}: runs with equal N, D, learning rate and batch differ in {column!r} "
                    f"({', '.join(sorted(mixed)[:6])}), so the law is not determined. Keep one value: {choices}"
                )


def _batch(
    path: Path,
    rows: Sequence[Row],
    hyper: HyperColumns,
    tokens_column: str,
    unit: str | float | None,
    tokens: Array,
    numbers: NumberFormat,
) -> tuple[Array | None, list[str]]:
    """The batch of each run in the unit of D, and notes."""
    if hyper.batch is None:
        if unit is not None:
            raise FitError(f"units batch={unit}: the table has no column for the batch")
        return None, []
    batch = _numbers(rows, hyper.batch, numbers)
    steps = _numbers(rows, hyper.steps, numbers) if hyper.steps else np.full(len(rows), math.nan)
    factor = batch_unit(path, hyper, tokens_column, unit, list(batch), list(steps), list(tokens))
    scale = np.full(len(rows), factor.factor)
    if factor.column is not None:
        scale = _numbers(rows, factor.column, numbers)
        if not np.all(scale > 0):
            raise FitError(
                f"{path}: {factor.column!r} has rows without a sequence length: write --units batch=2048, with "
                "the tokens per sequence of all runs, or --units batch=tokens"
            )
    return batch * scale, [f"batch = column {hyper.batch!r} {factor.reason}"]


def _check_steps(batch: Array | None, tokens: Array, hyper: HyperColumns) -> list[Diagnostic]:
    """A warning if D / batch is not a plausible number of steps."""
    if batch is None:
        return []
    steps = tokens / batch
    few, many = int((steps < MIN_STEPS).sum()), int((steps > MAX_STEPS).sum())
    if not few and not many:
        return []
    message = (
        f"{few or many} of {len(steps)} runs would have {'fewer' if few else 'more'} than "
        f"{MIN_STEPS if few else MAX_STEPS:,.0f} steps (D / batch): check the unit of {hyper.batch!r} with "
        "--units batch=tokens or --units batch=TOKENS_PER_SEQUENCE"
    )
    return [Diagnostic(code="batch-unit", message=message)]
