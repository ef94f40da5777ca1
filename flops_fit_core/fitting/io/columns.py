"""Maps columns of a table to roles (N, D, C, loss and others). Ambiguous columns are an error, never a guess."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.files import RawTable
from flops_fit_core.fitting.io.histories import ROWS
from flops_fit_core.fitting.io.names import (
    ACTIVE,
    FINISHED,
    HELD_OUT,
    LETTERS,
    LOSS,
    NAMES,
    NO,
    NO_LOSS,
    PERPLEXITY,
    ROLES,
    TRAINING,
    YES,
    normalise_name,
    parse_header_scale,
    split_words,
)
from flops_fit_core.fitting.io.numbers import NumberFormat, is_blank

NEEDED = ("params", "tokens", "loss")
NOT_READ = "none"
"""``--column flops=none``: do not read a column for an optional role."""

_HINTS: Mapping[str, frozenset[str]] = {
    "params": frozenset(("param", "params", "parameter", "parameters", "mparams", "size")),
    "tokens": frozenset(("token", "tokens", "gtokens", "samples", "images", "examples", "documents")),
    "loss": frozenset(("loss", "nll", "xent", "entropy")),
}
"""Words in names of columns that may have a role; the user must confirm them."""
_COUNTS_OF_DATA = frozenset(
    ("step", "steps", "iter", "iters", "iterations", "updates", "epoch", "epochs", "ratio")
)
_NO_HINT = frozenset(("per", "log", "ln", "sec", "second", "vocab", "batch", "kqv", "step", "parallel", "context"))
_STEPS = frozenset(("step", "steps", "iter", "iters", "iterations", "updates"))
_LENGTHS = frozenset(("seq", "sequence", "context", "block"))
_NO_SIZE = frozenset(("eval", "val", "test", "prefetch", "num", "per", "device", "micro"))
"""Words in names of batches and lengths that are not those of a training step."""
_ADD_N = '; if the log lacks N, write {"params": 124e6} (for example) to flops_fit.json in the folder of each run'
_RATIO = re.compile(r"tok\w{0,20}?[ _]?per[ _]?par|^d ?/ ?n$", re.IGNORECASE)
_MAX_NAMES = 40
"""A message lists at most this many column names."""
_MAX_CHOICES = 6
"""A message lists at most this many columns for one role."""


@dataclass(frozen=True)
class Columns:
    """The column of each role, by its name in the table."""

    by_role: dict[str, str]
    scales: dict[str, float] = field(default_factory=dict)
    """Role -> factor stated in the header, as in ``tokens (B)``."""
    notes: tuple[str, ...] = ()
    derived: str = ""
    """``tokens`` or ``params`` if the table lacks it and it is computed from C = 6 N D; otherwise empty."""


def choose_columns(
    path: Path,
    raw: RawTable,
    user_columns: Mapping[str, str],
    inputs: Sequence[str] = (),
    *,
    from_logs: bool = False,
    without_tokens: bool = False,
) -> Columns:
    """The column of each role, and of each further input of a law: from ``user_columns``, otherwise by name.

    With ``without_tokens``, D is optional. In logs of runs (``from_logs``) a column of one letter has no role, and
    a loss must be a held-out loss.

    Raises FitError if a required role has no column, or several columns with different values.
    """
    by_role = _map_columns(path, raw, user_columns, inputs)
    notes: list[str] = []
    scales: dict[str, float] = {}
    for role in ROLES:
        if role in by_role or role in user_columns:
            continue
        free = [column for column in raw.header if column not in by_role.values()]
        free = _columns_of_logs(path, free, role) if from_logs else free
        choose = _find_loss_column if role == "loss" else _find_ranked_column
        column = choose(path, raw, role, free, notes)
        if column is not None:
            by_role[role] = column
    by_role |= {name: _find_input(path, raw, name) for name in inputs if name not in by_role}
    for role in ("params", "tokens", "flops", "budget", "unique_tokens"):
        if role in by_role and (scale := parse_header_scale(by_role[role])) is not None:
            scales[role] = scale
            notes.append(f"{role} = column {by_role[role]!r} times {scale:g}, by its name")
    missing = [role for role in NEEDED if role not in by_role and (role != "tokens" or not without_tokens)]
    derived = _find_derived_role(raw, by_role, missing)
    if missing and not derived:
        raise FitError(
            _describe_missing(path, raw, missing) + (_ADD_N if from_logs and "params" in missing else "")
        )
    if derived and "flops" not in by_role:
        by_role["flops"] = by_role.pop("budget")
        scales.update({"flops": scales.pop("budget")} if "budget" in scales else {})
    if derived:
        formula = "D = C / 6 N" if derived == "tokens" else "N = C / 6 D"
        notes.append(f"the table has no {derived}: {formula} is used, with C = column {by_role['flops']!r}")
    return Columns(by_role, scales, tuple(notes), derived)


def _find_derived_role(raw: RawTable, by_role: Mapping[str, str], missing: Sequence[str]) -> str:
    """The role to compute from C = 6 N D; empty without C, or if a column may hold the role."""
    if list(missing) not in (["tokens"], ["params"]) or not {"flops", "budget"} & set(by_role):
        return ""
    hints = _HINTS[missing[0]] | (_COUNTS_OF_DATA if missing[0] == "tokens" else {"model"})
    free = [column for column in raw.header if column not in by_role.values()]
    return "" if any(split_words(column) & hints for column in free) else missing[0]


def _find_input(path: Path, raw: RawTable, name: str) -> str:
    """The column with the name of a law's input. Raises FitError if there is none."""
    matches = [column for column in raw.header if normalise_name(column) == normalise_name(name)]
    if not matches:
        raise FitError(
            f"{path}: the law needs {name}, and no column has this name: write --column {name}=COLUMN. The "
            f"columns are {_list_names(raw)}"
        )
    _refuse_repeated(path, raw, name, matches[0])
    return matches[0]


def _map_columns(
    path: Path, raw: RawTable, user_columns: Mapping[str, str], inputs: Sequence[str]
) -> dict[str, str]:
    by_name = {name.strip().lower(): name for name in reversed(raw.header)}
    by_role = {}
    for role, column in user_columns.items():
        if (role, column) == ("id", ROWS) and ROWS not in by_name:
            continue
        if column == NOT_READ and role in ROLES and role not in NEEDED and NOT_READ not in by_name:
            continue
        if role not in (*ROLES, *inputs):
            raise FitError(f"unknown role {role!r}; valid roles: {', '.join((*ROLES, *inputs))}")
        match = column if column in raw.header else by_name.get(column.strip().lower())
        if match is None:
            close = difflib.get_close_matches(column, raw.header, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise FitError(f"{path} has no column {column!r}{hint} It has: {_list_names(raw)}")
        _refuse_repeated(path, raw, role, match)
        by_role[role] = match
    return by_role


def _refuse_repeated(path: Path, raw: RawTable, role: str, column: str) -> None:
    if column in raw.repeated:
        copies = [
            name for name in raw.header if name == column or re.fullmatch(re.escape(column) + r" \(\d+\)", name)
        ]
        if not _agree(raw, copies):
            raise FitError(
                f"{path} has {len(copies)} columns named {column!r} with different values, so {role} is not "
                "determined: give each column a unique name"
            )


def _find_ranked_column(path: Path, raw: RawTable, role: str, free: Sequence[str], notes: list[str]) -> str | None:
    for number, rank in enumerate(NAMES[role]):
        columns = [column for column in free if normalise_name(column) in rank]
        if role == "status" and set(rank) <= FINISHED:
            columns = [column for column in columns if _is_flag(raw, column)]
        if not columns:
            continue
        if role == "id":
            return columns[0]
        if role == "params":
            columns += [column for column in free if normalise_name(column) in ACTIVE and column not in columns]
        column = _require_agreement(path, raw, role, columns, notes)
        lower_ranks = {name for other in NAMES[role][number + 1 :] for name in other} - {LETTERS.get(role)}
        alternatives = [
            other for other in free if normalise_name(other) in lower_ranks and not _agree(raw, [column, other])
        ]
        if alternatives:
            notes.append(
                f"{role} = column {column!r}, rather than {_quote_names(alternatives)}; "
                f"--column {role}=COLUMN selects another"
            )
        if normalise_name(column).lower() == LETTERS.get(role):
            notes.append(f"{role} = column {column!r}, by one letter; --column {role}=COLUMN selects another")
        return column
    return None


def _is_flag(raw: RawTable, column: str) -> bool:
    cells = {str(row.get(column)).strip().lower() for _, row in raw.rows if not is_blank(row.get(column))}
    return cells <= YES | NO


def _find_loss_column(path: Path, raw: RawTable, role: str, free: Sequence[str], notes: list[str]) -> str | None:
    """The held-out loss if any, otherwise the only loss."""
    free = [
        column
        for column in free
        if not re.search(r"(?<![a-z])(?:log|ln)\d*[ _]?(?:loss|nll)", column, re.IGNORECASE)
    ]
    words = {column: split_words(column) for column in free}
    losses = [column for column in free if words[column] & LOSS and not words[column] & NO_LOSS]
    losses += [column for column in free if {"cross", "entropy"} <= words[column] and not words[column] & NO_LOSS]
    held_out = [column for column in losses if words[column] & HELD_OUT]
    if held_out:
        column = _require_agreement(path, raw, role, held_out, notes)
        if other_losses := [other for other in losses if other not in held_out]:
            notes.append(f"loss = column {column!r}, the held-out loss, rather than {_quote_names(other_losses)}")
        return column
    if losses:
        column = _require_agreement(path, raw, role, losses, notes)
        if words[column] & TRAINING:
            notes.append(f"loss = column {column!r}, a training loss: laws are meant for held-out losses")
        return column
    return _find_letter_column(raw, free, notes)


def _columns_of_logs(path: Path, free: Sequence[str], role: str) -> list[str]:
    """The columns of logs that may have a role by their name.

    Raises FitError if the logs have losses, and none of them is a held-out loss.
    """
    free = [column for column in free if len(normalise_name(column)) > 1]
    if role != "loss":
        return free
    free = [column for column in free if not column.startswith("config.")]
    losses = [column for column in free if split_words(column) & LOSS and not split_words(column) & NO_LOSS]
    if losses and not any(split_words(column) & HELD_OUT for column in losses):
        raise FitError(
            f"{path}: no held-out loss is logged, only {_quote_names(losses[:6])}, and a training loss is no "
            f"substitute. To fit it anyway, type --column loss={_quote_argument(losses[0])}"
        )
    return free


def _find_letter_column(raw: RawTable, free: Sequence[str], notes: list[str]) -> str | None:
    """A column L, unless it counts layers."""
    column = next((column for column in free if normalise_name(column) == LETTERS["loss"]), None)
    if column is not None:
        numbers = [NumberFormat().number_or_nan(row.get(column)) for _, row in raw.rows]
        if numbers and all(number.is_integer() for number in numbers):
            return None
        notes.append(f"loss = column {column!r}, by one letter; --column loss=COLUMN selects another")
    return column


def _require_agreement(path: Path, raw: RawTable, role: str, columns: Sequence[str], notes: list[str]) -> str:
    """The first of columns that agree in every row. Raises FitError if they differ."""
    for column in columns:
        _refuse_repeated(path, raw, role, column)
    if len(columns) > 1:
        if not _agree(raw, columns):
            more = f" or {len(columns) - _MAX_CHOICES} more columns" if len(columns) > _MAX_CHOICES else ""
            shown = columns[:_MAX_CHOICES]
            raise FitError(
                f"{path}: {role} could be {' or '.join(map(repr, shown))}{more}, which hold different values: "
                "write " + " or ".join(f"--column {role}={_quote_argument(column)}" for column in shown)
            )
        notes.append(f"{role} = column {columns[0]!r}, repeated in {_quote_names(columns[1:])}")
    return columns[0]


def _agree(raw: RawTable, columns: Sequence[str]) -> bool:
    return all(
        len({str(row.get(column)) for column in columns}) == 1
        or _are_equal_numbers([row.get(column) for column in columns])
        for _, row in raw.rows
    )


def _are_equal_numbers(cells: Sequence[object]) -> bool:
    numbers = [NumberFormat().number_or_nan(cell) for cell in cells]
    return all(math.isclose(number, numbers[0], rel_tol=1e-9) for number in numbers)


def _quote_names(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns))


def _list_names(raw: RawTable) -> str:
    more = f" and {len(raw.header) - _MAX_NAMES} more" if len(raw.header) > _MAX_NAMES else ""
    return ", ".join(raw.header[:_MAX_NAMES]) + more if raw.header else "nothing"


def _quote_argument(column: str) -> str:
    return f"'{column}'" if re.search(r"[^\w./-]", column) else column


def _describe_missing(path: Path, raw: RawTable, missing: Sequence[str]) -> str:
    message = (
        f"{path} has no column for {', '.join(missing)}. It has: {_list_names(raw)}. "
        f"Name each: {' '.join(f'--column {role}=COLUMN' for role in missing)}"
    )
    words = {column: split_words(column) for column in raw.header}
    for role in missing:
        likely = [column for column in raw.header if words[column] & _HINTS[role] and not words[column] & _NO_HINT]
        if likely and len(likely) <= 8:
            message += (
                f"; {role} may be {' or '.join(f'--column {role}={_quote_argument(column)}' for column in likely)}"
            )
    if "tokens" in missing and (steps := [column for column in raw.header if words[column] & _COUNTS_OF_DATA]):
        message += _describe_steps(raw.header, steps)
    if "tokens" in missing and (ratios := list(filter(_RATIO.search, raw.header))):
        message += (
            f"; {_quote_names(ratios[:3])} is a ratio: its product with N is --column "
            f"{_quote_argument(f'tokens=N_COLUMN*{ratios[0]}')}"
        )
    if "loss" in missing:
        perplexities = [column for column in raw.header if words[column] & PERPLEXITY]
        if perplexities:
            message += (
                f"; {_quote_names(perplexities[:4])} is a perplexity: add a column with its natural logarithm"
            )
        bits = [column for column in raw.header if words[column] & {"bpb", "bpc", "bits"}]
        if bits:
            argument = _quote_argument(bits[0])
            message += (
                f"; {_quote_names(bits[:4])} is in bits: --column loss={argument} fits it, with losses in bits"
            )
    if sum(not name.strip(" ()0123456789") for name in raw.header) > len(raw.header) / 2:
        message += "; the first line must hold the column names: delete any title above it"
    return message


def _describe_steps(header: Sequence[str], steps: Sequence[str]) -> str:
    """How to get tokens from steps, with the columns of the batch if there are any."""
    step = next((column for column in steps if split_words(column) & _STEPS), steps[0])
    message = (
        f"; {_quote_names(steps[:3])} does not count tokens: write --column "
        f"{_quote_argument(f'tokens={step}*T')}, with T the tokens of one step"
    )
    words = {column: split_words(column) for column in header}
    batches = [
        column for column in header if words[column] & {"batch", "bs", "bsz"} and not words[column] & _NO_SIZE
    ]
    lengths = [column for column in header if words[column] & _LENGTHS and not words[column] & _NO_SIZE]
    if not batches:
        return message
    if any("token" in word for word in words[batches[0]]):
        lengths = []
    product = "*".join([step, batches[0], *lengths[:1]])
    return (
        f"{message} (for example {_quote_argument(f'tokens={product}')}, if {batches[0]!r} is the batch of all "
        "devices and accumulation steps" + ("" if lengths else ", in tokens") + ")"
    )
