"""The columns of learning rate and batch, and the unit of the batch. Ambiguity is an error with the choices."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.files import RawTable
from flops_fit_core.fitting.io.names import normalise_name
from flops_fit_core.fitting.io.numbers import NumberFormat, parse_scale

ROLES = ("lr", "batch", "steps", "sequence")
"""Roles of columns that only this law reads."""
NOT_READ = "none"
LR_NAMES = frozenset(
    (
        *(
            "lr",
            "learning_rate",
            "learningrate",
            "peak_lr",
            "max_lr",
            "base_lr",
            "init_lr",
            "initial_lr",
            "lr_peak",
        ),
        *(
            "lr_max",
            "peak_learning_rate",
            "max_learning_rate",
            "base_learning_rate",
            "initial_learning_rate",
            "eta",
        ),
    )
)
TOKEN_BATCH_NAMES = frozenset(
    (
        *("batch_tokens", "tokens_per_batch", "batch_size_tokens", "batch_size_in_tokens", "global_batch_tokens"),
        *("global_batch_size_tokens", "total_batch_size_tokens", "global_batch_size_in_tokens", "tokens_per_step"),
    )
)
BATCH_NAMES = frozenset(
    (
        *("bs", "batch", "batch_size", "global_batch_size", "global_batch", "gbs", "bsz", "train_batch_size"),
        *("total_batch_size", "effective_batch_size", "total_train_batch_size", "batch_size_sequences"),
        *("batch_size_in_sequences", "sequences_per_batch", "batchsize"),
    )
)
PER_DEVICE = re.compile(
    r"per_(?:device|gpu|rank|worker)|(?:^|_)(?:micro|local|device)_?(?:train_)?(?:micro)?batch|^mbs$"
)
"""Names of a batch that is a part of a step."""
ACCUMULATION = frozenset(
    ("gradient_accumulation_steps", "grad_accum", "grad_accum_steps", "accumulate_grad_batches", "grad_acc_steps")
)
SEQUENCE_NAMES = frozenset(
    (
        *("seq_len", "seq_length", "seqlen", "sequence_length", "max_seq_len", "max_seq_length", "context_length"),
        *("context_len", "max_sequence_length", "block_size", "n_ctx", "context"),
    )
)
STEP_NAMES = frozenset(
    (
        *("steps", "max_steps", "train_steps", "num_steps", "total_steps", "n_steps", "iters", "iterations"),
        *("train_iters", "max_iters", "num_iterations", "training_steps", "num_train_steps"),
    )
)
SAMPLE_NAMES = frozenset(("samples", "train_samples", "n_samples", "samples_seen", "images"))
"""Names of D in samples: the batch is then in the same unit."""
_LOGARITHM = re.compile(r"(?:^|_)(?:log|log2|log10|ln)_?(?:lr|learning_rate|batch|bs)")
_WHOLE_STEPS = 0.005
"""Relative deviation of D / (batch steps) from an integer number of tokens per sequence."""


@dataclass(frozen=True)
class HyperColumns:
    """The columns of the hyperparameters."""

    lr: str | None
    batch: str | None
    batch_column_is_tokens: bool
    sequence: str | None
    steps: str | None
    notes: tuple[str, ...]

    @property
    def used(self) -> list[str]:
        """Columns with numbers."""
        return [column for column in (self.lr, self.batch, self.sequence, self.steps) if column is not None]


def choose_hyper_columns(path: Path, raw: RawTable, user_columns: Mapping[str, str]) -> HyperColumns:
    """The columns of learning rate, batch, steps and sequence length: the user's, otherwise by name.

    Raises FitError if several columns with different values match, if the batch may be a part of a step, or if the
    table has neither a learning rate nor a batch.
    """
    notes: list[str] = []
    taken = {column for role, column in user_columns.items() if role not in ROLES}
    free = [column for column in raw.header if column not in taken]
    lr = _role_column(path, raw, "lr", free, LR_NAMES, user_columns, notes)
    tokens = None
    if "batch" not in user_columns:
        tokens = _role_column(path, raw, "batch", free, TOKEN_BATCH_NAMES, {}, notes)
    batch = tokens or _role_column(path, raw, "batch", free, BATCH_NAMES, user_columns, notes)
    if "batch" not in user_columns and tokens is None:
        _refuse_partial_batch(path, raw, batch)
    if "batch" in user_columns and batch is not None:
        tokens = batch if normalise_name(batch) in TOKEN_BATCH_NAMES else None
    if lr is None and batch is None:
        logarithms = [column for column in raw.header if _LOGARITHM.search(normalise_name(column))]
        hint = f"; {logarithms[0]!r} is a logarithm: add a column with the value itself" if logarithms else ""
        raise FitError(
            f"{path} has no column for the learning rate or the batch. It has: {', '.join(raw.header[:40])}. Name "
            f"them: --column lr=COLUMN --column batch=COLUMN{hint}"
        )
    sequence = _role_column(path, raw, "sequence", free, SEQUENCE_NAMES, user_columns, notes)
    steps = _role_column(path, raw, "steps", free, STEP_NAMES, user_columns, notes)
    return HyperColumns(lr, batch, tokens is not None, sequence, steps, tuple(notes))


def _role_column(
    path: Path,
    raw: RawTable,
    role: str,
    free: Sequence[str],
    names: frozenset[str],
    user_columns: Mapping[str, str],
    notes: list[str],
) -> str | None:
    if role in user_columns:
        return _user_column(path, raw, role, user_columns[role])
    matches = [column for column in free if _has_name(column, names)]
    if len(matches) > 1 and not _columns_agree(raw, matches):
        choices = " or ".join(f"--column {role}={_quoted(column)}" for column in matches)
        raise FitError(
            f"{path}: {role} could be {' or '.join(map(repr, matches))}, which hold different values: write "
            f"{choices}"
        )
    if len(matches) > 1:
        notes.append(f"{role} = column {matches[0]!r}, repeated in {', '.join(map(repr, matches[1:]))}")
    return matches[0] if matches else None


def _user_column(path: Path, raw: RawTable, role: str, column: str) -> str | None:
    if column == NOT_READ and NOT_READ not in raw.header:
        return None
    if column in raw.header:
        return column
    close = difflib.get_close_matches(column, raw.header, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise FitError(f"{path} has no column {column!r} for {role}{hint} It has: {', '.join(raw.header[:40])}")


def _has_name(column: str, names: frozenset[str]) -> bool:
    return normalise_name(column) in names or normalise_name(re.split(r"[./]", column)[-1]) in names


def _columns_agree(raw: RawTable, columns: Sequence[str]) -> bool:
    numbers = NumberFormat()
    for _, row in raw.rows:
        texts = {str(row.get(column)).strip() for column in columns}
        values = [numbers.number_or_nan(row.get(column)) for column in columns]
        if len(texts) > 1 and not all(math.isclose(value, values[0], rel_tol=1e-9) for value in values):
            return False
    return True


def _refuse_partial_batch(path: Path, raw: RawTable, batch: str | None) -> None:
    """Raises FitError if the table has only a part of a step's batch, such as the batch per device."""
    partial = [column for column in raw.header if PER_DEVICE.search(normalise_name(column))]
    partial = [column for column in partial if "eval" not in column.lower()]
    if batch is None and partial:
        raise FitError(
            f"{path}: {partial[0]!r} is the batch of a device or micro-batch, and the law needs the batch of an "
            f"optimizer step. Add a column with the product of {partial[0]}, devices and accumulated steps; or, "
            f"if that factor is the same in all rows, write --column batch={_quoted(partial[0])} --units "
            f"batch=FACTOR (tokens per step / {partial[0]}); or write --column batch=none to fit the learning "
            "rate alone"
        )
    accumulated = [
        column
        for column in raw.header
        if normalise_name(column) in ACCUMULATION
        and {NumberFormat().number_or_nan(row.get(column)) for _, row in raw.rows} - {1.0}
    ]
    is_total = batch is not None and re.search(r"global|total|effective", normalise_name(batch))
    if batch is not None and accumulated and not is_total:
        raise FitError(
            f"{path}: {batch!r} may be a micro-batch, because {accumulated[0]!r} is not 1 in all rows. Write "
            f"--column batch={_quoted(batch)} if it is the batch of an optimizer step; otherwise add a column "
            "with the product, or write --column batch=none to fit the learning rate alone"
        )


def _quoted(column: str) -> str:
    return f"'{column}'" if re.search(r"[^\w./-]", column) else column


@dataclass(frozen=True)
class BatchUnit:
    """The factor from the batch column to the unit of D, and the reason for it."""

    factor: float
    """Not used if the table has a column with the sequence length."""
    column: str | None
    """Column with the factor of each row."""
    reason: str


def batch_unit(
    path: Path,
    columns: HyperColumns,
    tokens_column: str,
    unit: str | float | None,
    batch: Sequence[float],
    steps: Sequence[float],
    tokens: Sequence[float],
) -> BatchUnit:
    """The unit of the batch, from the user, the name, a sequence length, or D = batch x steps x length.

    Raises FitError, with the choices, if neither decides.
    """
    assert columns.batch is not None
    if unit is not None:
        factor = parse_scale(unit) if isinstance(unit, str) else unit
        if factor is None or not (math.isfinite(factor) and factor > 0):
            raise FitError(
                f"units batch={unit}: write 'tokens' for a batch in tokens, or the tokens per sequence, such as "
                "2048"
            )
        return BatchUnit(factor, None, f"times {factor:g}")
    if columns.batch_column_is_tokens:
        return BatchUnit(1.0, None, "in tokens, by its name")
    if normalise_name(tokens_column) in SAMPLE_NAMES:
        return BatchUnit(1.0, None, f"in samples, as D ({tokens_column!r})")
    if columns.sequence is not None:
        return BatchUnit(1.0, columns.sequence, f"times column {columns.sequence!r}")
    if columns.steps is not None and (length := _sequence_length(batch, steps, tokens)) is not None:
        return BatchUnit(float(length), None, f"times {length}, by D / ({columns.batch} x {columns.steps})")
    raise FitError(
        f"{path}: the unit of {columns.batch!r} is not determined: write --units batch=tokens if it is in tokens; "
        "--units batch=2048 if it is in sequences of 2,048 tokens; or --column sequence=COLUMN or --column "
        "steps=COLUMN if a column has the tokens per sequence or the steps per run"
    )


def _sequence_length(batch: Sequence[float], steps: Sequence[float], tokens: Sequence[float]) -> int | None:
    """D / (batch x steps) if it is nearly the same integer in all rows."""
    products = np.asarray(batch) * np.asarray(steps)
    ratios = np.asarray(tokens) / products
    if not (np.isfinite(ratios).all() and len(ratios)):
        return None
    length = round(float(np.median(ratios)))
    agrees = length > 0 and bool(np.quantile(np.abs(ratios / max(length, 1) - 1), 0.95) <= _WHOLE_STEPS)
    return length if agrees else None
