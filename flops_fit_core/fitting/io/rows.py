"""Converts rows of a table to observations, and gives a reason for each unusable row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flops_fit_core.fitting.io.columns import NEEDED, Columns
from flops_fit_core.fitting.io.files import RawTable
from flops_fit_core.fitting.io.histories import Row
from flops_fit_core.fitting.io.names import DIVERGED, FINISHED, YES, normalise_name
from flops_fit_core.fitting.io.numbers import NumberFormat, is_blank
from flops_fit_core.records import Observation

COMPLETED = frozenset(
    (
        *("", "completed", "complete", "finished", "finish", "success", "succeeded", "successful", "done", "ok"),
        "passed",
    )
)
"""Statuses of usable runs, in lower case."""
STATUS_REASON = "its status is "
"""Start of the reason for rows with any other status."""
_SUMMARY_LABELS = frozenset(
    (
        *("total", "totals", "grand total", "sum", "mean", "average", "avg", "median", "std", "stdev"),
        *("min", "max", "count", "25%", "50%", "75%"),
    )
)
"""Labels, in lower case, of rows that summarise other rows."""


SMALLEST, LARGEST = 1e-60, 1e60
"""Products and quotients of numbers between these neither overflow nor vanish."""


def number_seeds(raw: RawTable, mapping: Columns) -> dict[str, int]:
    """Seed text -> number. If any seed is not an integer, seeds are numbered in the order of the table."""
    column = mapping.by_role.get("seed")
    if column is None:
        return {}
    texts = list(dict.fromkeys(cell_text(row.get(column)) for _, row in raw.rows if not is_blank(row.get(column))))
    numbers = [NumberFormat().number_or_nan(text) for text in texts]
    if all(number.is_integer() for number in numbers):
        return {text: int(number) for text, number in zip(texts, numbers, strict=True)}
    return {text: count for count, text in enumerate(texts)}


@dataclass(frozen=True)
class RowReader:
    mapping: Columns
    numbers: NumberFormat
    scales: Mapping[str, float]
    seeds: Mapping[str, int]
    where: Mapping[str, str]
    units: frozenset[str] = frozenset()
    """Roles with a factor from the user."""
    inputs: Sequence[str] = ()
    """Roles that are further inputs of a law."""
    signed_loss: bool = False

    def read(self, place: str, values: dict[str, Any]) -> Row:
        row = {role: values.get(column) for role, column in self.mapping.by_role.items()}
        loss = row.get("loss")
        status = "" if is_blank(row.get("status")) else cell_text(row.get("status"))
        if self._is_unfinished(status) and self.mapping.by_role["status"] not in self.where:
            return Row(place, values, reason=f"{STATUS_REASON}{status}", loss=loss)
        for column in values:
            if normalise_name(column) in DIVERGED and cell_text(values[column]).lower() in YES:
                return Row(place, values, reason=f"{column} is {cell_text(values[column])}", loss=loss)
        labels = {cell_text(row.get("id")).lower(), cell_text(next(iter(values.values()), None)).lower()}
        if label := sorted(labels & _SUMMARY_LABELS):
            return Row(place, values, reason=f"{label[0]!r} is a summary of other rows", loss=loss)
        try:
            without_flops = "flops" in row and is_blank(row["flops"])
            return Row(place, values, self._observation(place, row), loss=loss, without_flops=without_flops)
        except ValueError as error:
            return Row(place, values, reason=str(error), loss=loss)

    def _is_unfinished(self, status: str) -> bool:
        is_flag = normalise_name(self.mapping.by_role.get("status", "")) in FINISHED
        return status.lower() not in COMPLETED and not (is_flag and status.lower() in YES)

    def _observation(self, place: str, row: Mapping[str, Any]) -> Observation:
        flops, budget, unique = (
            self._optional(role, row.get(role)) for role in ("flops", "budget", "unique_tokens")
        )
        values = {role: self._positive(role, row[role]) for role in NEEDED if role in row and role != "loss"}
        values["loss"] = self._read_loss(row.get("loss"))
        if "tokens" not in row and self.mapping.derived != "tokens":
            values["tokens"] = 1.0
        if self.mapping.derived:
            if flops is None:
                raise ValueError(f"{self.mapping.derived} and flops are missing")
            (source_role,) = {"params", "tokens"} - {self.mapping.derived}
            values[self.mapping.derived] = flops / 6 / values[source_role]
        params, tokens, loss = (values[role] for role in NEEDED)
        flops = 6 * params * tokens if flops is None else flops
        trajectory = None if is_blank(row.get("trajectory")) else cell_text(row.get("trajectory"))
        seed = None if is_blank(row.get("seed")) else self.seeds[cell_text(row.get("seed"))]
        return Observation(
            id=place,
            params=params,
            tokens=tokens,
            flops=flops,
            loss=loss,
            loss_se=self._read_standard_error(row.get("loss_se")),
            budget=budget,
            seed=seed,
            trajectory=trajectory,
            unique_tokens=unique,
            inputs={role: self._positive(role, row.get(role)) for role in self.inputs},
        )

    def _read_loss(self, cell: Any) -> float:
        return self.numbers.number("loss", cell) if self.signed_loss else self._positive("loss", cell)

    def _read_standard_error(self, cell: Any) -> float | None:
        if is_blank(cell):
            return None
        number = self.numbers.number("loss_se", cell)
        if not 0 <= number < math.inf:
            raise ValueError(f"loss_se is {number:g}; a standard error must be finite and not negative")
        return number

    def _optional(self, role: str, cell: Any) -> float | None:
        return None if is_blank(cell) else self._positive(role, cell)

    def _positive(self, role: str, cell: Any) -> float:
        if role == "loss" and cell_text(cell).lower() in ("nan", "-nan"):
            raise ValueError("loss is nan")
        number = self.numbers.number(role, cell)
        if role in self.scales and self.numbers.has_unit(cell):
            if role in self.units and self.scales[role] != 1:
                raise ValueError(
                    f"{role} = {str(cell)[:40]!r} already has a unit, so --units {role} would apply twice"
                )
        else:
            number *= self.scales.get(role, 1.0)
        if number <= 0:
            raise ValueError(f"{role} is {number:g}; it must be positive")
        if not SMALLEST < number < LARGEST:
            raise ValueError(f"{role} is {number:g}; it must be between {SMALLEST:g} and {LARGEST:g}")
        return number


def exclude_copies(rows: Sequence[Row], mapping: Columns) -> list[Row]:
    """Exclude rows that repeat another row in every cell, unless the table holds replicates.

    Replicates without ids look the same if their losses agree after rounding; excluding them would bias the rest
    towards replicates that differ. So if any rows share N and D and have different losses, all rows are kept.
    """
    losses: dict[tuple[float, float], set[float]] = {}
    for row in rows:
        if (run := row.observation) is not None:
            losses.setdefault((run.params, run.tokens), set()).add(run.loss)
    has_id = "id" in mapping.by_role
    if not has_id and any(len(values) > 1 for values in losses.values()):
        return list(rows)
    first: dict[tuple[str, ...], Row] = {}
    result = []
    for row in rows:
        if row.observation is not None:
            original = first.setdefault(tuple(cell_text(cell) for cell in row.values.values()), row)
            if original is not row:
                name = cell_text(original.values.get(mapping.by_role["id"])) if has_id else ""
                row = Row(
                    row.place, row.values, reason=f"the same values as {name or original.place}", loss=row.loss
                )
        result.append(row)
    return result


def cell_text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()
