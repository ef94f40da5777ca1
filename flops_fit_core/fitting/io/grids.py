"""Tables with several experiments: grids of hyperparameters, and columns that split the rows into groups."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.histories import Row
from flops_fit_core.fitting.io.names import normalise_name
from flops_fit_core.fitting.io.numbers import NumberFormat, is_blank
from flops_fit_core.numbers import share
from flops_fit_core.records import Diagnostic, Observation

POOLED = "none"
"""``--best-of none``: rows that differ in a hyperparameter are fitted together."""
OTHER_SETTING_REASON = "another setting of"

_HYPERPARAMETERS = frozenset(
    (
        *("lr", "learning_rate", "peak_lr", "max_lr", "base_lr", "init_lr", "eta", "log2_lr", "log_lr", "min_lr"),
        *("bs", "batch", "batch_size", "global_batch_size", "batch_tokens", "tokens_per_batch", "gbs", "bsz"),
        *(
            "wd",
            "weight_decay",
            "warmup",
            "warmup_steps",
            "warmup_tokens",
            "warmup_ratio",
            "beta1",
            "beta2",
            "beta_2",
        ),
        *(
            "momentum",
            "dropout",
            "eps",
            "epsilon",
            "grad_clip",
            "clip",
            "optimizer",
            "optim",
            "schedule",
            "scheduler",
        ),
        *("lr_schedule", "decay", "init_std", "initializer_range"),
    )
)
_MIN_GRID_SHARE, _MIN_GRID_CELLS = 0.25, 2
"""A table is a grid if this share of rows, in this many pairs of (N, D), differ only in a hyperparameter."""
_SAME_TOKENS = math.log(1.02)
"""D within a cell may differ, because runs with different batches take whole steps."""
_MAX_GROUPS = 40
_MIN_EFFECT = 0.002
_REMARKS = frozenset(("note", "comment", "remark", "description"))
"""Names of columns for people, in the singular."""


@dataclass(frozen=True)
class SelectedRows:
    """Rows after selection of the best setting per cell."""

    rows: list[Row]
    diagnostics: list[Diagnostic]


def select_best(
    path: Path, rows: Sequence[Row], roles: Mapping[str, str], numbers: NumberFormat, best_of: Sequence[str] | None
) -> SelectedRows:
    """The rows of the best setting of ``best_of`` at each (N, D), or all rows for ``("none",)``.

    Settings are compared by their mean loss over seeds, and all seeds of the best setting are kept. Raises
    FitError if the table is a grid of hyperparameters and ``best_of`` is None, or if ``best_of`` names an unknown
    column.
    """
    usable = [row for row in rows if row.observation is not None]
    header = list(usable[0].values) if usable else []
    free = [column for column in header if column not in roles.values()]
    tuned = [column for column in free if is_hyperparameter(column)]
    cells = group_cells(usable, text_columns(usable, [column for column in free if column not in tuned], numbers))
    if best_of is None:
        return SelectedRows(list(rows), _refuse_grid(path, usable, cells, tuned))
    if tuple(best_of) == (POOLED,):
        varied = [column for column in tuned if _varies(cells, column)]
        message = (
            f"rows that share N and D and differ in {', '.join(varied) or 'a hyperparameter'} are fitted together"
        )
        return SelectedRows(list(rows), [Diagnostic(code="grid", message=message, severity="note")])
    if unknown_columns := [column for column in best_of if column not in header]:
        raise FitError(f"{path} has no column {unknown_columns[0]!r} for --best-of; it has: {', '.join(header)}")
    best_places, at_edge = set(), Counter[str]()
    for cell in cells:
        best = _best_setting(cell, best_of)
        best_places |= {row.place for row in best}
        at_edge.update(column for column in best_of if _is_at_edge(column, best[0], cell, numbers))
    names = ", ".join(best_of)
    reason = f"{OTHER_SETTING_REASON} {names} has a lower loss at this N and D"
    selected = [
        row
        if row.observation is None or row.place in best_places
        else replace(row, observation=None, reason=reason)
        for row in rows
    ]
    message = (
        f"the best of {names} at each of {len(cells)} pairs of N and D: {len(best_places)} of {len(usable)} rows"
    )
    notes = [Diagnostic(code="grid", message=message, severity="note")]
    for column, count in at_edge.items():
        message = (
            f"in {count} of {len(cells)} pairs of N and D the best {column} is the smallest or largest value "
            "tried, so a better value may lie beyond and the loss may be too high"
        )
        notes.append(Diagnostic(code="grid-edge", message=message))
    return SelectedRows(selected, notes)


def check_groups(rows: Sequence[Row], roles: Mapping[str, str], numbers: NumberFormat) -> list[Diagnostic]:
    """Warn about the text column that splits the rows into groups with different losses at equal N and D."""
    usable = [row for row in rows if row.observation is not None]
    free = [column for column in (usable[0].values if usable else ()) if column not in roles.values()]
    best: tuple[float, str, list[str]] | None = None
    for column in text_columns(usable, free, numbers):
        labels = [_label(row, column) for row in usable]
        gain = _group_effect([row.observation for row in usable if row.observation is not None], labels)
        if gain > 0 and (best is None or gain > best[0]):
            best = gain, column, sorted(set(labels))
    if best is None:
        return []
    gain, column, values = best
    shown = ", ".join(repr(value) for value in values[:4]) + (", ..." if len(values) > 4 else "")
    value = next((value for value in values if value), "")
    message = (
        f"this fit pools {len(values)} groups of column {column!r}; --group-by {shlex.quote(column)} fits each. "
        f"At equal N and D, the losses of the groups ({shown}) differ by {share(gain)} (root mean square). "
        f"--filter {shlex.quote(f'{column}={value}')} keeps one group"
    )
    return [Diagnostic(code="groups", message=message)]


def _refuse_grid(
    path: Path, usable: Sequence[Row], cells: Sequence[Sequence[Row]], tuned: Sequence[str]
) -> list[Diagnostic]:
    varied = [column for column in tuned if _varies(cells, column)]
    if not varied:
        return []
    twins = [cell for cell in cells if any(len({_label(row, column) for row in cell}) > 1 for column in varied)]
    count = sum(map(len, twins))
    names, example = ", ".join(varied), shlex.quote(",".join(varied))
    message = f"{count} of {len(usable)} rows share N and D with a row that differs in {names}"
    if len(twins) < _MIN_GRID_CELLS or count < _MIN_GRID_SHARE * len(usable):
        return [Diagnostic(code="grid", message=f"{message}; --best-of {example} fits the best setting of each")]
    raise FitError(
        f"{path}: {message}. This is a grid of hyperparameters, and a law should use its best runs: write "
        f"--best-of {example} for the best at each N and D, or --best-of {POOLED} to fit all rows together"
    )


def group_cells(usable: Sequence[Row], texts: Sequence[str]) -> list[list[Row]]:
    """Group rows with equal N, equal D to within 2%, and equal values in every text column."""
    groups: dict[tuple[Any, ...], list[tuple[float, Row]]] = defaultdict(list)
    for row in usable:
        run = row.observation
        assert run is not None
        key = (round(math.log(run.params), 6), run.unique_tokens, *(_label(row, column) for column in texts))
        groups[key].append((math.log(run.tokens), row))
    cells: list[list[Row]] = []
    for group in groups.values():
        group.sort(key=lambda pair: pair[0])
        start = -math.inf
        for ln_tokens, row in group:
            if ln_tokens - start > _SAME_TOKENS:
                cells.append([])
                start = ln_tokens
            cells[-1].append(row)
    return cells


def is_hyperparameter(column: str) -> bool:
    name = normalise_name(re.split(r"[./]", column)[-1])
    return name in _HYPERPARAMETERS or name.endswith(("_lr", "_learning_rate", "_batch_size", "_weight_decay"))


def _varies(cells: Sequence[Sequence[Row]], column: str) -> bool:
    return any(len({_label(row, column) for row in cell}) > 1 for cell in cells)


def _best_setting(cell: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    settings: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in cell:
        settings[tuple(_label(row, column) for column in columns)].append(row)
    return min(settings.values(), key=lambda rows: sum(_loss(row) for row in rows) / len(rows))


def _is_at_edge(column: str, best: Row, cell: Sequence[Row], numbers: NumberFormat) -> bool:
    """Whether the best value is the smallest or largest of at least three."""
    values = {numbers.number_or_nan(row.values.get(column)) for row in cell}
    values = {value for value in values if math.isfinite(value)}
    return len(values) > 2 and numbers.number_or_nan(best.values.get(column)) in (min(values), max(values))


def _loss(row: Row) -> float:
    assert row.observation is not None
    return row.observation.loss


def text_columns(usable: Sequence[Row], columns: Sequence[str], numbers: NumberFormat) -> list[str]:
    return [column for column in columns if _splits_rows(usable, column, numbers)]


def _splits_rows(usable: Sequence[Row], column: str, numbers: NumberFormat) -> bool:
    """Whether a column has two values, or two to forty texts in at least two rows each on average.

    Empty cells are a group. Remarks on runs are no groups.
    """
    if column.strip().lower().rstrip("s") in _REMARKS:
        return False
    cells = [row.values.get(column) for row in usable]
    filled = [cell for cell in cells if not is_blank(cell)]
    if len({str(cell) for cell in filled}) == 2 and len(filled) == len(cells) > 3:
        return True
    texts = [
        cell for cell in filled if isinstance(cell, str | bool) and math.isnan(numbers.number_or_nan(str(cell)))
    ]
    if not filled or len(texts) < 0.5 * len(filled):
        return False
    if len({str(cell).strip() for cell in filled}) > len(filled) // 2:
        return False
    return 2 <= len({_label(row, column) for row in usable}) <= min(_MAX_GROUPS, len(usable) // 2)


def _label(row: Row, column: str) -> str:
    cell = row.values.get(column)
    return "" if is_blank(cell) else str(cell).strip()


def _group_effect(runs: Sequence[Observation], labels: Sequence[str]) -> float:
    """Root mean square difference in ln L between groups at equal N and D, from a quadratic in (ln N, ln D).

    0 if below 0.2% or not significant by an F test at 1e-4.
    """
    import numpy as np
    from scipy import stats

    if not _sizes_overlap(runs, labels):
        return 0.0
    x = np.log([[run.params, run.tokens] for run in runs])
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    n, d = x.T
    y = np.log([run.loss for run in runs])
    smooth = np.stack([np.ones_like(n), n, d, n * n, n * d, d * d], axis=1)
    names = sorted(set(labels))
    groups = np.array([[float(label == name) for name in names[1:]] for label in labels])
    smooth_coefficients, _, rank, _ = np.linalg.lstsq(smooth, y, rcond=None)
    design = np.concatenate([smooth, groups], axis=1)
    coefficients, _, full_rank, _ = np.linalg.lstsq(design, y, rcond=None)
    rss_without, rss_with = (
        float(((y - smooth @ smooth_coefficients) ** 2).sum()),
        float(((y - design @ coefficients) ** 2).sum()),
    )
    dof = len(y) - int(full_rank)
    if full_rank <= rank or dof < 3:
        return 0.0
    ratio = ((rss_without - rss_with) / (full_rank - rank)) / max(rss_with / dof, 1e-300)
    if stats.f.sf(ratio, full_rank - rank, dof) > 1e-4:
        return 0.0
    shift = groups @ coefficients[smooth.shape[1] :]
    effect = float(np.sqrt(np.mean((shift - shift.mean()) ** 2)))
    return effect if effect > _MIN_EFFECT else 0.0


def _sizes_overlap(runs: Sequence[Observation], labels: Sequence[str]) -> bool:
    """Whether the sizes of two groups overlap; a column that names the size does not split the rows."""
    sizes: dict[str, list[float]] = defaultdict(list)
    for run, label in zip(runs, labels, strict=True):
        sizes[label].append(run.params)
    spans = sorted((min(values), max(values)) for values in sizes.values())
    return any(first[1] > second[0] and second[1] > second[0] for first, second in pairwise(spans))
