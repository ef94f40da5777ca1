"""A table of runs that anybody trained, as observations; every unusable row is named with its reason."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.histories import (
    NAME_COLUMNS,
    ROWS,
    Row,
    about_trajectories,
    join_histories,
    run_column,
)
from flops_fit_core.fitting.units import suspicious_units, table_in_bits
from flops_fit_core.records import Diagnostic, Observation

ALIASES: Mapping[str, tuple[str, ...]] = {
    "params": ("params", "n", "parameters", "n_params", "num_params", "param_count", "model_size", "model_params"),
    "tokens": (
        "tokens",
        "d",
        "train_tokens",
        "n_tokens",
        "num_tokens",
        "training_tokens",
        "dataset_size",
        "samples",
    ),
    "flops": ("flops", "c", "flop", "compute", "train_flops", "training_flops", "training_flop", "total_flops"),
    "loss": ("loss", "l", "final_loss", "val_loss", "eval_loss", "test_loss", "heldout_loss", "validation_loss"),
    "budget": ("budget", "compute_budget", "flops_budget", "nominal_flops", "isoflop_budget"),
    "unique_tokens": ("unique_tokens", "unique", "u_d"),
    "id": ("id", "run_id", "run id", "run", "run_uuid", "wandb_run_id", *NAME_COLUMNS),
    "seed": ("seed",),
    "trajectory": ("trajectory", "trunk"),
    "status": ("status",),
}
"""Column names by what they hold, best first; upper and lower case are the same."""

_NEEDED = ("params", "tokens", "loss")
_SAME = ("params", "tokens", "flops", "loss", "budget", "seed", "trajectory")
"""Rows that agree in all of these are one row, written twice."""
COMPLETED = ("", "completed", "finished")
"""Statuses of a run that can be used: ours, and those of W&B and MLflow, in any case."""


@dataclass(frozen=True)
class RunTable:
    """What a table of runs held."""

    observations: list[Observation]
    excluded: dict[str, str] = field(default_factory=dict)
    """Row -> why it cannot be used."""
    diagnostics: list[Diagnostic] = field(default_factory=list)


def read_runs(path: Path, columns: Mapping[str, str] | None = None) -> list[Observation]:
    """The runs of a CSV or parquet table, one a row.

    ``columns`` maps what a column holds to its name, such as ``{"params": "n_params"}``, where no alias fits.
    Raises FitError where the file or one of its rows cannot be used; :func:`read_table` keeps the good rows.
    """
    return read_complete_table(path, columns).observations


def read_complete_table(path: Path, columns: Mapping[str, str] | None = None) -> RunTable:
    """As :func:`read_table`. Raises FitError where one row cannot be used."""
    table = read_table(path, columns)
    if table.excluded:
        lines = "".join(f"\n  {row}: {why}" for row, why in list(table.excluded.items())[:10])
        raise FitError(f"{path}: {len(table.excluded)} rows cannot be used:{lines}")
    return table


def read_table(
    path: Path, columns: Mapping[str, str] | None = None, where: Mapping[str, str] | None = None
) -> RunTable:
    """The usable runs of a CSV or parquet table, and why the other rows are not.

    Rows are called by their line in a CSV file (the first row below the header is ``row 2``), by the number
    of the record, counted from 1, in a parquet file; or by the table's own ``id``. Missing FLOPs are 6 N D. Of
    several rows of one run, the last counts, unless the table has a ``trajectory``
    (:func:`~flops_fit_core.fitting.histories.join_histories`).
    ``where`` keeps the rows whose columns hold these texts, such as ``{"group": "c4"}``. Rows whose units look
    wrong are kept and named. Raises FitError where the file cannot be read or a needed column is missing.
    """
    path = Path(path)
    header, rows = _rows(path)
    named = _columns(path, header, columns or {})
    if unknown := sorted(set(where or {}) - set(header)):
        raise FitError(f"{path} has no column {unknown[0]!r}; it has: {', '.join(header)}")
    table, kept = RunTable([]), _Kept()
    if "flops" not in named:
        text = "the table has no FLOPs: C = 6 N D is used, N as the table counts it"
        table.diagnostics.append(Diagnostic(code="flops-6nd", message=text, severity="note"))
    chosen = [
        _read_row(f"row {number}", row, named, kept)
        for number, row in rows
        if all(_text(row.get(column)) == wanted for column, wanted in (where or {}).items())
    ]
    runs = None if "trajectory" in named else run_column(header, (columns or {}).get("id"))
    if runs is not None:
        joined = join_histories(path, chosen, runs, header, is_mapped="id" in (columns or {}))
        chosen = joined.rows
        table.diagnostics.extend(joined.diagnostics)
    for row in chosen:
        _add_row(row, named, table, kept)
    table.diagnostics.extend(about_trajectories(table.observations))
    table.diagnostics.extend(suspicious_units(table.observations))
    others = {name: kept.numbers(name) for name in header if name not in named.values()}
    table.diagnostics.extend(table_in_bits(table.observations, named["loss"], others))
    return table


@dataclass
class _Kept:
    """What has been read, to notice what comes twice, and what else the table says."""

    names: set[str] = field(default_factory=set)
    values: dict[tuple[Any, ...], tuple[str, str]] = field(default_factory=dict)
    """Name and place of the first row with these values."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The usable ones, all columns."""

    def numbers(self, column: str) -> list[float]:
        """A column of the usable rows; NaN where it holds no number."""
        return [_number_or_nan(row.get(column)) for row in self.rows]

    def name(self, wanted: str, place: str) -> str:
        name = wanted if wanted and wanted not in self.names else f"{wanted} ({place})" if wanted else place
        self.names.add(name)
        return name


def _read_row(place: str, values: dict[str, Any], named: Mapping[str, str], kept: _Kept) -> Row:
    row = {key: values.get(column) for key, column in named.items()}
    loss = row.get("loss")
    if (status := _text(row.get("status"))).lower() not in COMPLETED:
        return Row(place, values, reason=f"its status is {status}", loss=loss)
    try:
        observation = _observation(place, row)
    except ValueError as error:
        return Row(place, values, reason=str(error), loss=loss)
    key = tuple(getattr(observation, name) for name in _SAME)
    twin, first = kept.values.setdefault(key, (_text(row.get("id")) or place, place))
    if first != place:
        return Row(place, values, reason=f"the same values as {twin}", loss=loss)
    return Row(place, values, observation, loss=loss)


def _add_row(row: Row, named: Mapping[str, str], table: RunTable, kept: _Kept) -> None:
    """Put a row where it belongs, called by the table's id where that is its own."""
    wanted = _text(row.values.get(named["id"])) if "id" in named else ""
    name = kept.name(wanted, row.place)
    if row.observation is None:
        table.excluded[name] = row.reason
        return
    table.observations.append(row.observation.model_copy(update={"id": name}))
    kept.rows.append(dict(row.values))


def _observation(name: str, row: dict[str, Any]) -> Observation:
    params, tokens, loss = (_positive(key, row.get(key)) for key in _NEEDED)
    flops = 6 * params * tokens if _blank(row.get("flops")) else _positive("flops", row["flops"])
    budget = None if _blank(row.get("budget")) else _positive("budget", row["budget"])
    unique = None if _blank(row.get("unique_tokens")) else _positive("unique_tokens", row["unique_tokens"])
    seed = None if _blank(row.get("seed")) else int(_number("seed", row["seed"]))
    trajectory = _text(row.get("trajectory")) or None
    if not math.isfinite(flops):
        raise ValueError("6 N D is too large for a number")
    return Observation(
        id=name,
        params=params,
        tokens=tokens,
        flops=flops,
        loss=loss,
        budget=budget,
        seed=seed,
        trajectory=trajectory,
        unique_tokens=unique,
    )


def _number(key: str, value: Any) -> float:
    if _blank(value):
        raise ValueError(f"{key} is missing")
    try:
        number = float(str(value).replace("_", ""))
    except ValueError:
        raise ValueError(f"{key} is not a number: {str(value)[:40]!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{key} is {number}")
    return number


def _number_or_nan(value: Any) -> float:
    try:
        return _number("", value)
    except ValueError:
        return math.nan


def _positive(key: str, value: Any) -> float:
    number = _number(key, value)
    if number <= 0:
        raise ValueError(f"{key} is {number:g}, and must be positive")
    return number


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()


def _columns(path: Path, header: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """What each column holds -> its name in this table."""
    by_name = {name.strip().lower(): name for name in reversed(header)}
    named = {}
    for key, column in given.items():
        if (key, column) == ("id", ROWS) and ROWS not in by_name:
            continue
        if key not in ALIASES:
            raise FitError(f"there is no {key!r} to map; there is: {', '.join(ALIASES)}")
        if column.strip().lower() not in by_name:
            close = difflib.get_close_matches(column, header, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise FitError(f"{path} has no column {column!r}{hint} It has: {', '.join(header)}")
        named[key] = by_name[column.strip().lower()]
    for key, aliases in ALIASES.items():
        there = next((by_name[alias] for alias in aliases if alias in by_name), None)
        if key not in {**named, **given} and there is not None and there not in named.values():
            named[key] = there
    if missing := [key for key in _NEEDED if key not in named]:
        raise FitError(
            f"{path} has no column for {', '.join(missing)}. It has: {', '.join(header) or 'nothing'}. "
            f"Say which is which: {' '.join(f'--map {key}=COLUMN' for key in missing)}"
        )
    return named


def _rows(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FitError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FitError(f"{path}: not a table of text: {error}") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    try:
        header = list(reader.fieldnames or [])
    except csv.Error as error:
        raise FitError(f"{path}: {error}") from None
    return header, _numbered(path, reader)


def _numbered(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise FitError(f"{path}, line {reader.line_num}: {error}") from None


def _parquet(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    try:
        import pandas
    except ImportError as error:
        raise FitError(
            f"{path}: reading parquet needs pandas and pyarrow ({error}): pip install 'flops-fit[parquet]'"
        ) from None
    try:
        frame = pandas.read_parquet(path)
    except FileNotFoundError:
        raise FitError(f"{path}: there is no such file") from None
    except Exception as error:
        raise FitError(f"{path}: {error}") from None
    records = frame.to_dict(orient="records")
    rows = ((number, {str(key): value for key, value in row.items()}) for number, row in enumerate(records, 1))
    return [str(name) for name in frame.columns], rows
