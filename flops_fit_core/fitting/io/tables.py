"""Reads a table of runs, trained with any software, as observations and unusable rows with their reasons."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.columns import NEEDED, Columns, choose_columns
from flops_fit_core.fitting.io.files import RawTable, read_text, table_suffix
from flops_fit_core.fitting.io.grids import OTHER_SETTING_REASON, check_groups, select_best
from flops_fit_core.fitting.io.histories import (
    Row,
    check_steps,
    check_trajectories,
    find_run_column,
    join_histories,
)
from flops_fit_core.fitting.io.json_records import json_records
from flops_fit_core.fitting.io.logged_runs import RUN_ID, check_counts, last_rows_of_unusable_runs
from flops_fit_core.fitting.io.names import ACTIVE, EXPERTS, normalise_name, split_words
from flops_fit_core.fitting.io.numbers import NumberFormat, decide_format, parse_scale
from flops_fit_core.fitting.io.products import add_products, named_columns
from flops_fit_core.fitting.io.rows import STATUS_REASON, RowReader, cell_text, exclude_copies, number_seeds
from flops_fit_core.fitting.io.sources import find_reader, read_source
from flops_fit_core.fitting.io.units import check_bits, check_budget, check_units, refuse_units
from flops_fit_core.plugins import limits
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Diagnostic, Observation

NUMBERS = ("params", "tokens", "flops", "loss", "loss_se", "budget", "unique_tokens")
"""Roles of columns with numbers."""
SCALED = ("params", "tokens", "flops", "budget", "unique_tokens")
"""Roles that ``units`` may scale."""


@dataclass(frozen=True)
class RunTable:
    """The content of a table of runs."""

    observations: list[Observation]
    excluded: dict[str, str] = field(default_factory=dict)
    """Row -> reason why it cannot be used."""
    diagnostics: list[Diagnostic] = field(default_factory=list)
    cells: dict[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """Observation id -> the cells of its row, by column."""
    columns: dict[str, str] = field(default_factory=dict)
    """Role -> column, such as ``{"loss": "val_loss"}``; roles without a column are missing."""

    @property
    def summary(self) -> str:
        """One sentence: the columns read, the number of rows used, and why other rows are excluded."""
        return next((item.message for item in self.diagnostics if item.code == "columns"), "")


@dataclass(frozen=True)
class TableOptions:
    """How to read a table, for choices that the table leaves open."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Role -> column: ``{"params": "n_params"}``."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Column -> text or number that rows must have in it."""
    units: Mapping[str, str | float] = field(default_factory=dict)
    """Role -> factor: ``{"params": "M", "tokens": 1e9}``."""
    decimal: str | None = None
    """``","`` for decimal commas, ``"."`` for points; None to detect."""
    best_of: Sequence[str] | None = None
    """Hyperparameters of a grid: only the best setting at each (N, D) is fitted. ``("none",)`` fits all rows."""
    inputs: Sequence[str] = ()
    """Further columns that a law needs, such as ``experts``."""
    signed_loss: bool = False
    """Whether the loss may be negative, as a loss less that of a reference."""
    without_tokens: bool = False
    """Whether the law has no D. Without a column of tokens, D is 1."""
    reader: str | None = None
    """Name of the reader plugin, if several recognise the path."""
    registry: Registry | None = None
    """The plugins; None for the installed plugins."""


@dataclass(frozen=True)
class TableRows:
    """The rows of a table, and how they were read."""

    raw: RawTable
    rows: list[Row]
    mapping: Columns
    numbers: NumberFormat
    diagnostics: list[Diagnostic]
    reader: str
    """Name of the reader of logs; empty for a table."""


def read_complete_table(path: Path, columns: Mapping[str, str] | None = None, **options: Any) -> RunTable:
    """As :func:`read_table`, but raises FitError if a row of a finished run cannot be used."""
    table = read_table(path, columns, **options)
    unusable = {
        row: text
        for row, text in table.excluded.items()
        if not text.startswith((STATUS_REASON, OTHER_SETTING_REASON))
    }
    if unusable:
        lines = "".join(f"\n  {row}: {reason}" for row, reason in list(unusable.items())[:10])
        raise FitError(f"{path}: {len(unusable)} rows cannot be used:{lines}")
    return table


def read_table(
    path: Path,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    *,
    units: Mapping[str, str | float] | None = None,
    decimal: str | None = None,
    best_of: Sequence[str] | None = None,
    inputs: Sequence[str] = (),
    signed_loss: bool = False,
    without_tokens: bool = False,
    reader: str | None = None,
    registry: Registry | None = None,
) -> RunTable:
    """The usable runs of a table (CSV, TSV, JSON, JSON lines, parquet; text also gzipped), and the excluded rows.

    A folder, or a file that a reader plugin recognises, holds logs of runs: each evaluation is a row, and the loss
    must be a held-out loss.

    A row is named by its ``id``, or by its line in a CSV file (the first row below the header is ``row 2``) or the
    number of its record. Missing FLOPs are 6 N D. The last of several rows of a run counts, unless the table has a
    ``trajectory`` (:func:`~flops_fit_core.fitting.io.histories.join_histories`). Empty cells and NaN in an
    optional column are missing values. Rows with suspicious units are kept and named in a diagnostic.

    Args:
        path: The file, or the folder of logs.
        columns: Role -> column, such as ``{"params": "n_params"}``, if names leave it open. A column may be a
            product of columns and numbers: ``{"tokens": "step*524288"}``.
        where: Column -> text or number that rows must have, such as ``{"group": "c4"}``.
        units: Role -> factor, such as ``{"params": "M", "tokens": 1e9}``.
        decimal: ``","`` or ``"."``, if no cell decides the number format.
        best_of: Hyperparameters of a grid; keeps the best setting at each (N, D). ``("none",)`` keeps all
            rows.
        inputs: Further columns that a law needs, such as ``experts``.
        signed_loss: Whether the loss may be negative, as a loss less that of a reference.
        without_tokens: Whether the law has no D. Without a column of tokens, D is 1.
        reader: Name of the reader plugin, if several recognise the path.
        registry: The plugins; by default the installed plugins.

    Raises FitError if the file cannot be read, a required column is missing, or the table is ambiguous.
    """
    options = TableOptions(
        columns or {},
        where or {},
        units or {},
        decimal,
        best_of,
        inputs=inputs,
        signed_loss=signed_loss,
        without_tokens=without_tokens,
        reader=reader,
        registry=registry,
    )
    path = Path(path)
    read = read_rows(path, options)
    best = select_best(path, read.rows, read.mapping.by_role, read.numbers, options.best_of)
    table = RunTable([], diagnostics=[*read.diagnostics, *best.diagnostics], columns=dict(read.mapping.by_role))
    add_rows(path, best.rows, read, table, options)
    return table


def read_rows(path: Path, options: TableOptions, number_columns: Sequence[str] = ()) -> TableRows:
    """The rows of a table before any selection. ``number_columns`` also decide the number format."""
    source = read_source(path, options.registry, options.reader, _user_names(options))
    raw = add_products(path, source.raw, options.columns, options.decimal)
    raw = _filter_rows(path, raw, options.where)
    mapping = choose_columns(
        path,
        raw,
        options.columns,
        options.inputs,
        from_logs=bool(source.reader),
        without_tokens=options.without_tokens,
    )
    numbers = _decide_number_format(path, raw, mapping, options, number_columns)
    scales = _merge_scales(mapping, options.units)
    row_reader = RowReader(
        mapping,
        numbers,
        scales,
        number_seeds(raw, mapping),
        options.where,
        frozenset(options.units),
        tuple(options.inputs),
        options.signed_loss,
    )
    rows = exclude_copies([row_reader.read(place, values) for place, values in raw.rows], mapping)
    diagnostics = [_note("columns", text) for text in mapping.notes]
    if source.logs is not None:
        logs = replace(source.logs, raw=raw)
        diagnostics = [
            *logs.diagnostics,
            *diagnostics,
            *check_counts(path, logs, mapping.by_role, options.columns),
        ]
    run_column = (
        None if "trajectory" in mapping.by_role else find_run_column(raw.header, options.columns.get("id"))
    )
    if run_column is not None:
        joined = join_histories(path, rows, run_column, raw.header, is_mapped="id" in options.columns)
        rows = joined.rows
        diagnostics.extend(joined.diagnostics)
    elif "trajectory" not in mapping.by_role and "id" not in options.columns:
        diagnostics.extend(check_steps(rows, raw.header))
    rows = last_rows_of_unusable_runs(rows) if source.reader else rows
    if "flops" not in mapping.by_role:
        diagnostics.append(
            _note("flops-6nd", "the table has no FLOPs: C = 6 N D is used, with N as given in the table")
        )
    elif without_flops := sum(row.observation is not None and row.without_flops for row in rows):
        diagnostics.append(_note("flops-6nd", f"{without_flops} rows have no FLOPs: C = 6 N D is used for these"))
    return TableRows(raw, rows, mapping, numbers, diagnostics, source.reader)


def add_rows(
    path: Path, rows: Sequence[Row], read: TableRows, table: RunTable, options: TableOptions
) -> list[Row]:
    """Add rows to the table, with its summary and diagnostics. Returns the usable rows.

    Raises FitError for impossible units.
    """
    used_rows = _add_rows(rows, read.mapping, table)
    _check_table(path, table, used_rows, read.mapping, read.numbers, options)
    summary = _summarise(path, read.raw, read.mapping, table, read.reader)
    table.diagnostics.insert(0, _note("columns", summary))
    return used_rows


def _user_names(options: TableOptions) -> set[str]:
    """The columns that the user names in any option."""
    best_of = () if options.best_of is None else options.best_of
    return named_columns(options.columns) | set(options.where) | set(best_of)


def is_table(path: Path, registry: Registry | None = None) -> bool:
    """Whether a file is a table, by its name and, for ``.json`` files, also by its content; or whether a reader
    plugin recognises a file or folder. A study's folder is no table."""
    suffix = table_suffix(path)
    if not suffix or path.is_dir():
        return find_reader(path, registry) is not None
    if suffix != ".json":
        return True
    try:
        if path.suffix.lower() == ".gz" or path.stat().st_size > limits.TABLE_BYTES:
            return True  # no experiment; read_table refuses a text above the limit
        return json_records(json.loads(read_text(path))) is not None
    except json.JSONDecodeError as error:
        return error.msg == "Extra data"
    except (FitError, OSError, ValueError, RecursionError):
        return False


def table_groups(
    path: Path,
    column: str,
    where: Mapping[str, str] | None = None,
    *,
    reader: str | None = None,
    registry: Registry | None = None,
) -> list[str]:
    """The distinct texts of a column, in table order. Raises FitError if the column does not exist."""
    source = read_source(Path(path), registry, reader, {column, *(where or {})})
    raw = _filter_rows(Path(path), source.raw, {column: "", **(where or {})}, skip=column)
    return list(dict.fromkeys(text for _, row in raw.rows if (text := cell_text(row.get(column)))))


def _note(code: str, message: str) -> Diagnostic:
    return Diagnostic(code=code, message=message, severity="note")


def _filter_rows(path: Path, raw: RawTable, where: Mapping[str, str], skip: str = "") -> RawTable:
    if unknown_columns := sorted(set(where) - set(raw.header)):
        raise FitError(f"{path} has no column {unknown_columns[0]!r}; it has: {', '.join(raw.header)}")
    filters = {column: text for column, text in where.items() if column != skip}
    rows = [
        (place, row)
        for place, row in raw.rows
        if all(_cell_equals(row.get(key), text) for key, text in filters.items())
    ]
    if raw.rows and not rows:
        column, text = next(iter(filters.items()))
        values = list(dict.fromkeys(cell_text(row.get(column)) for _, row in raw.rows))
        shown = ", ".join(map(repr, values[:8])) + (", ..." if len(values) > 8 else "")
        raise FitError(f"{path}: no row has {column} = {text!r}; its values are: {shown}")
    return RawTable(raw.header, rows, raw.repeated)


def _cell_equals(cell: Any, text: str) -> bool:
    if cell_text(cell) == text.strip():
        return True
    first, second = (NumberFormat().number_or_nan(value) for value in (cell, text))
    return first == second


def _decide_number_format(
    path: Path, raw: RawTable, mapping: Columns, options: TableOptions, number_columns: Sequence[str] = ()
) -> NumberFormat:
    columns = [mapping.by_role[role] for role in NUMBERS if role in mapping.by_role] + list(number_columns)
    try:
        numbers = decide_format(
            ((place, column, row.get(column)) for place, row in raw.rows for column in columns),
            options.decimal,
            mapping.by_role["loss"],
        )
    except FitError as error:
        raise FitError(f"{path}: {error}") from None
    loss = mapping.by_role["loss"]
    for place, row in raw.rows:
        if numbers.has_thousands(row.get(loss)):
            raise FitError(
                f"{path}, {place}: {loss} = {row[loss]!r} would be a loss in thousands in the number format of "
                "the other cells: write losses and counts in the same format"
            )
    return numbers


def _merge_scales(mapping: Columns, units: Mapping[str, str | float]) -> dict[str, float]:
    scales = dict(mapping.scales)
    for role, unit in units.items():
        scale = parse_scale(unit) if isinstance(unit, str) else unit
        if role not in SCALED or scale is None or not (math.isfinite(scale) and scale > 0):
            raise FitError(
                f"units {role}={unit}: write one of {', '.join(SCALED)}, and a factor such as 1e6, M, 1e9 or B"
            )
        if role not in mapping.by_role:
            raise FitError(f"units {role}={unit}: the table has no column for {role}")
        scales[role] = scale
    return scales


def _add_rows(rows: Sequence[Row], mapping: Columns, table: RunTable) -> list[Row]:
    """Add every row to the table, named by its id if unique; returns the usable rows."""
    names: set[str] = set()
    used_rows = []
    for row in rows:
        row_id = cell_text(row.values.get(mapping.by_role["id"])) if "id" in mapping.by_role else ""
        name = row_id if row_id and row_id not in names else f"{row_id} ({row.place})" if row_id else row.place
        names.add(name)
        if row.observation is None:
            table.excluded[name] = row.reason
        else:
            table.observations.append(row.observation.model_copy(update={"id": name}))
            table.cells[name] = row.values
            used_rows.append(row)
    return used_rows


def _check_table(
    path: Path,
    table: RunTable,
    used_rows: Sequence[Row],
    mapping: Columns,
    numbers: NumberFormat,
    options: TableOptions,
) -> None:
    """Add diagnostics for suspicious values. Raises FitError for impossible units."""
    by_role = mapping.by_role
    if options.signed_loss or ("tokens" not in by_role and not mapping.derived):
        return  # the checks are for a loss in nats per token, and for N, D and C
    refuse_units(
        path,
        table.observations,
        with_flops=[]
        if mapping.derived or "flops" not in by_role
        else [run for run, row in zip(table.observations, used_rows, strict=True) if not row.without_flops],
        confirmed=set(options.units),
        scaled=set(mapping.scales),
        by_role=by_role,
    )
    diagnostics = table.diagnostics
    diagnostics.extend(check_groups(used_rows, by_role, numbers))
    experts = [column for column in (used_rows[0].values if used_rows else ()) if split_words(column) & EXPERTS]
    if experts and "flops" not in by_role and normalise_name(by_role["params"]) not in ACTIVE:
        message = (
            f"column {experts[0]!r} suggests a mixture of experts. Its C is 6 N D with active parameters: "
            f"if {by_role['params']!r} counts all parameters, write --column params=COLUMN"
        )
        diagnostics.append(Diagnostic(code="experts", message=message))
    diagnostics.extend(check_trajectories(table.observations))
    has_unit_sign = ("flops" in by_role and not mapping.derived) or bool({*options.units, *mapping.scales})
    diagnostics.extend(check_units(table.observations, has_flops=has_unit_sign))
    if "budget" in by_role:
        diagnostics.extend(check_budget(table.observations, by_role["budget"], has_flops="flops" in by_role))
    other_columns = {
        column: [numbers.number_or_nan(row.values.get(column)) for row in used_rows]
        for column in (used_rows[0].values if used_rows else ())
        if column not in by_role.values()
    }
    diagnostics.extend(check_bits(table.observations, by_role["loss"], other_columns))
    repeated = sum(1 for run in table.observations if run.unique_tokens and run.unique_tokens < run.tokens)
    if repeated:
        message = (
            f"{repeated} rows were trained on repeated tokens: the laws muennighoff and bounded have a term for "
            "repeated tokens (--law muennighoff), the other laws treat them as new tokens"
        )
        diagnostics.append(_note("repeated-tokens", message))


def _summarise(path: Path, raw: RawTable, mapping: Columns, table: RunTable, reader: str) -> str:
    by_role = dict(mapping.by_role)
    formulas = {"tokens": "tokens = C / 6 N", "params": "params = C / 6 D"}
    shown = [
        formulas[role] if role == mapping.derived else f"{role} = {by_role.pop(role)!r}"
        for role in NEEDED
        if role in by_role or role == mapping.derived
    ]
    shown.insert(2, f"flops = {by_role.pop('flops')!r}" if "flops" in by_role else "flops = 6 N D")
    shown += [f"{role} = {column!r}" for role, column in by_role.items()]
    source = f"{path.name or path} with reader {reader.rpartition('/')[2]}" if reader else path.name
    total, unit = len(raw.rows), "rows"
    if reader and "trajectory" not in by_role:
        total, unit = len({row[RUN_ID] for _, row in raw.rows}), "runs"
    text = f"read {source}: {', '.join(shown)}; {len(table.observations)} of {total} {unit} used"
    reasons = Counter(table.excluded.values())
    if reasons:
        frequent = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(4))
        text += f"; left out: {frequent}" + (f"; {len(reasons) - 4} further reasons" if len(reasons) > 4 else "")
    for role, column in mapping.by_role.items() if reasons and not table.observations else ():
        start = STATUS_REASON if role == "status" else f"{role} is"
        if role not in NEEDED and all(reason.startswith(start) for reason in reasons):
            text += f"; --column {role}=none reads the rows without {column!r}"
    return text
