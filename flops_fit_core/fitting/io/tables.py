"""A table of runs that anybody trained, as observations; every unusable row is named with its reason."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.columns import NEEDED, Columns, choose_columns
from flops_fit_core.fitting.io.files import RawTable, read_raw, table_suffix
from flops_fit_core.fitting.io.grids import ANOTHER_SETTING, mention_groups, select_best
from flops_fit_core.fitting.io.histories import Row, about_trajectories, join_histories, mention_steps, run_column
from flops_fit_core.fitting.io.json_records import json_records
from flops_fit_core.fitting.io.names import ACTIVE, EXPERTS, plain_name, words_of
from flops_fit_core.fitting.io.numbers import NumberFormat, decide_format, parse_scale
from flops_fit_core.fitting.io.rows import STATUS, RowReader, cell_text, seed_numbers, without_copies
from flops_fit_core.fitting.io.units import budget_as_named, refuse_units, suspicious_units, table_in_bits
from flops_fit_core.records import Diagnostic, Observation

NUMBERS = ("params", "tokens", "flops", "loss", "budget", "unique_tokens")
"""Roles whose columns hold numbers."""
SCALED = ("params", "tokens", "flops", "budget", "unique_tokens")
"""Roles that ``units`` may scale."""


@dataclass(frozen=True)
class RunTable:
    """What a table of runs held."""

    observations: list[Observation]
    excluded: dict[str, str] = field(default_factory=dict)
    """Row -> why it cannot be used."""
    diagnostics: list[Diagnostic] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One sentence: which columns were read, how many rows are used, and why the others are not."""
        return next((item.message for item in self.diagnostics if item.code == "columns"), "")


@dataclass(frozen=True)
class TableOptions:
    """How a table is to be read, where the table itself leaves that open."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Role -> column: ``{"params": "n_params"}``."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Column -> the text or number that rows must have in it."""
    units: Mapping[str, str | float] = field(default_factory=dict)
    """Role -> factor: ``{"params": "M", "tokens": 1e9}``."""
    decimal: str | None = None
    """``","`` for decimal commas, ``"."`` for points; None to find out."""
    best_of: Sequence[str] | None = None
    """Hyperparameters of a grid whose best setting at each (N, D) is fitted; ``("none",)`` to fit all rows."""


def read_runs(path: Path, columns: Mapping[str, str] | None = None, **options: Any) -> list[Observation]:
    """The runs of a table, one a row. Options as in :func:`read_table`.

    Raises FitError where the file or one of its rows cannot be used; :func:`read_table` keeps the good rows.
    """
    return read_complete_table(path, columns, **options).observations


def read_complete_table(path: Path, columns: Mapping[str, str] | None = None, **options: Any) -> RunTable:
    """As :func:`read_table`. Raises FitError where a row of a run that finished cannot be used."""
    table = read_table(path, columns, **options)
    wrong = {row: text for row, text in table.excluded.items() if not text.startswith((STATUS, ANOTHER_SETTING))}
    if wrong:
        lines = "".join(f"\n  {row}: {reason}" for row, reason in list(wrong.items())[:10])
        raise FitError(f"{path}: {len(wrong)} rows cannot be used:{lines}")
    return table


def read_table(
    path: Path,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    *,
    units: Mapping[str, str | float] | None = None,
    decimal: str | None = None,
    best_of: Sequence[str] | None = None,
) -> RunTable:
    """The usable runs of a table (CSV, TSV, JSON, JSON lines, parquet; text also gzipped), and why other rows are
    not.

    A row is called by its ``id``, otherwise by its line in a CSV file (the first row below the header is ``row
    2``) or by the number of its record. Missing FLOPs are 6 N D. Of several rows of one run the last counts,
    unless the table has a ``trajectory`` (:func:`~flops_fit_core.fitting.io.histories.join_histories`). Empty
    cells and NaN in an optional column mean that nothing is given. Rows whose units look wrong are kept and named.

    Args:
        path: The file.
        columns: Role -> column, such as ``{"params": "n_params"}``, where names leave it open.
        where: Column -> the text or number that rows must have, such as ``{"group": "c4"}``.
        units: Role -> factor, such as ``{"params": "M", "tokens": 1e9}``.
        decimal: ``","`` or ``"."``, where no cell decides how numbers are written.
        best_of: Hyperparameters of a grid, whose best setting at each (N, D) is kept; ``("none",)`` keeps all
        rows.

    Raises FitError where the file cannot be read, a needed column is missing, or the table can be read in two
    ways.
    """
    options = TableOptions(columns or {}, where or {}, units or {}, decimal, best_of)
    path = Path(path)
    raw = _rows_where(path, read_raw(path), options.where)
    chosen = choose_columns(path, raw, options.columns)
    numbers = _format(path, raw, chosen, options)
    scales = _scales(chosen, options.units)
    reader = RowReader(chosen, numbers, scales, seed_numbers(raw, chosen), options.where, frozenset(options.units))
    rows = without_copies([reader.read(place, values) for place, values in raw.rows], chosen)
    diagnostics = [_note("columns", text) for text in chosen.notes]
    if "flops" not in chosen.named:
        diagnostics.append(
            _note("flops-6nd", "the table has no FLOPs: C = 6 N D is used, N as the table counts it")
        )
    elif blank := sum(row.observation is not None and row.without_flops for row in rows):
        diagnostics.append(_note("flops-6nd", f"{blank} rows have no FLOPs: C = 6 N D is used for these"))
    runs = None if "trajectory" in chosen.named else run_column(raw.header, options.columns.get("id"))
    if runs is not None:
        joined = join_histories(path, rows, runs, raw.header, is_mapped="id" in options.columns)
        rows = joined.rows
        diagnostics.extend(joined.diagnostics)
    elif "trajectory" not in chosen.named and "id" not in options.columns:
        diagnostics.extend(mention_steps(rows, raw.header))
    best = select_best(path, rows, chosen.named, numbers, options.best_of)
    table = RunTable([], diagnostics=[*diagnostics, *best.diagnostics])
    kept = _collect(best.rows, chosen, table)
    _check(path, table, kept, chosen, numbers, options)
    table.diagnostics.insert(0, _note("columns", _summary(path, raw, chosen, table)))
    return table


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name; a ``.json`` file, by its content too."""
    suffix = table_suffix(path)
    if suffix != ".json":
        return bool(suffix)
    try:
        return json_records(json.loads(path.read_text(encoding="utf-8-sig"))) is not None
    except json.JSONDecodeError as error:
        return error.msg == "Extra data"
    except (OSError, UnicodeDecodeError):
        return False


def table_groups(path: Path, column: str, where: Mapping[str, str] | None = None) -> list[str]:
    """The texts of a column, in the order of the table. Raises FitError where there is no such column."""
    raw = _rows_where(Path(path), read_raw(Path(path)), {column: "", **(where or {})}, skip=column)
    return list(dict.fromkeys(text for _, row in raw.rows if (text := cell_text(row.get(column)))))


def _note(code: str, message: str) -> Diagnostic:
    return Diagnostic(code=code, message=message, severity="note")


def _rows_where(path: Path, raw: RawTable, where: Mapping[str, str], skip: str = "") -> RawTable:
    if unknown := sorted(set(where) - set(raw.header)):
        raise FitError(f"{path} has no column {unknown[0]!r}; it has: {', '.join(raw.header)}")
    wanted = {column: text for column, text in where.items() if column != skip}
    rows = [
        (place, row) for place, row in raw.rows if all(_is(row.get(key), text) for key, text in wanted.items())
    ]
    if raw.rows and not rows:
        column, text = next(iter(wanted.items()))
        there = list(dict.fromkeys(cell_text(row.get(column)) for _, row in raw.rows))
        shown = ", ".join(map(repr, there[:8])) + (", ..." if len(there) > 8 else "")
        raise FitError(f"{path}: no row has {column} = {text!r}; there is: {shown}")
    return RawTable(raw.header, rows, raw.repeated)


def _is(cell: Any, text: str) -> bool:
    if cell_text(cell) == text.strip():
        return True
    first, second = (NumberFormat().number_or_nan(value) for value in (cell, text))
    return first == second


def _format(path: Path, raw: RawTable, chosen: Columns, options: TableOptions) -> NumberFormat:
    columns = [chosen.named[role] for role in NUMBERS if role in chosen.named]
    try:
        numbers = decide_format(
            ((place, column, row.get(column)) for place, row in raw.rows for column in columns),
            options.decimal,
            chosen.named["loss"],
        )
    except FitError as error:
        raise FitError(f"{path}: {error}") from None
    loss = chosen.named["loss"]
    for place, row in raw.rows:
        if numbers.has_thousands(row.get(loss)):
            raise FitError(
                f"{path}, {place}: {loss} = {row[loss]!r} would be a loss in thousands, by how other cells of the "
                "table write numbers: write losses and counts in one way"
            )
    return numbers


def _scales(chosen: Columns, units: Mapping[str, str | float]) -> dict[str, float]:
    scales = dict(chosen.scales)
    for role, unit in units.items():
        scale = parse_scale(unit) if isinstance(unit, str) else unit
        if role not in SCALED or scale is None or not (math.isfinite(scale) and scale > 0):
            raise FitError(
                f"units {role}={unit}: write one of {', '.join(SCALED)}, and a factor such as 1e6, M, 1e9 or B"
            )
        if role not in chosen.named:
            raise FitError(f"units {role}={unit}: the table has no column for {role}")
        scales[role] = scale
    return scales


def _collect(rows: Sequence[Row], chosen: Columns, table: RunTable) -> list[Row]:
    """Put every row where it belongs, called by its id where that is its own; the usable rows."""
    names: set[str] = set()
    kept = []
    for row in rows:
        wanted = cell_text(row.values.get(chosen.named["id"])) if "id" in chosen.named else ""
        name = wanted if wanted and wanted not in names else f"{wanted} ({row.place})" if wanted else row.place
        names.add(name)
        if row.observation is None:
            table.excluded[name] = row.reason
        else:
            table.observations.append(row.observation.model_copy(update={"id": name}))
            kept.append(row)
    return kept


def _check(
    path: Path,
    table: RunTable,
    kept: Sequence[Row],
    chosen: Columns,
    numbers: NumberFormat,
    options: TableOptions,
) -> None:
    """Add a diagnostic for everything that looks wrong. Raises FitError for units that cannot be right."""
    named = chosen.named
    refuse_units(
        path,
        table.observations,
        measured=[]
        if chosen.derived or "flops" not in named
        else [run for run, row in zip(table.observations, kept, strict=True) if not row.without_flops],
        settled=set(options.units),
        scaled=set(chosen.scales),
        named=named,
    )
    diagnostics = table.diagnostics
    diagnostics.extend(mention_groups(kept, named, numbers))
    experts = [column for column in (kept[0].values if kept else ()) if words_of(column) & EXPERTS]
    if experts and "flops" not in named and plain_name(named["params"]) not in ACTIVE:
        text = (
            f"column {experts[0]!r} is of a mixture of experts, whose C is 6 N D with the parameters that a token "
            f"passes through: where {named['params']!r} counts all of them, write --column params=COLUMN"
        )
        diagnostics.append(Diagnostic(code="experts", message=text))
    diagnostics.extend(about_trajectories(table.observations))
    has_unit_sign = ("flops" in named and not chosen.derived) or bool({*options.units, *chosen.scales})
    diagnostics.extend(suspicious_units(table.observations, has_flops=has_unit_sign))
    if "budget" in named:
        diagnostics.extend(budget_as_named(table.observations, named["budget"], has_flops="flops" in named))
    others = {
        column: [numbers.number_or_nan(row.values.get(column)) for row in kept]
        for column in (kept[0].values if kept else ())
        if column not in named.values()
    }
    diagnostics.extend(table_in_bits(table.observations, named["loss"], others))
    repeated = sum(1 for run in table.observations if run.unique_tokens and run.unique_tokens < run.tokens)
    if repeated:
        text = (
            f"{repeated} rows were trained on tokens that they had seen before: fitter muennighoff has a term for "
            "repeated tokens, the other fitters take them as new"
        )
        diagnostics.append(_note("repeated-tokens", text))


def _summary(path: Path, raw: RawTable, chosen: Columns, table: RunTable) -> str:
    named = dict(chosen.named)
    formulas = {"tokens": "tokens = C / 6 N", "params": "params = C / 6 D"}
    shown = [formulas[role] if role == chosen.derived else f"{role} = {named.pop(role)!r}" for role in NEEDED]
    shown.insert(2, f"flops = {named.pop('flops')!r}" if "flops" in named else "flops = 6 N D")
    shown += [f"{role} = {column!r}" for role, column in named.items()]
    text = f"read {path.name}: {', '.join(shown)}; {len(table.observations)} of {len(raw.rows)} rows used"
    reasons = Counter(table.excluded.values())
    if reasons:
        most = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(4))
        text += f"; left out: {most}" + (f"; {len(reasons) - 4} further reasons" if len(reasons) > 4 else "")
    for role, column in chosen.named.items() if reasons and not table.observations else ():
        start = STATUS if role == "status" else f"{role} is"
        if role not in NEEDED and all(reason.startswith(start) for reason in reasons):
            text += f"; --column {role}=none reads the rows without {column!r}"
    return text
