"""Which column of a table holds N, D, C, the loss and the rest; two columns that could are an error, never a
guess."""

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
    header_scale,
    plain_name,
    words_of,
)
from flops_fit_core.fitting.io.numbers import NumberFormat, is_blank

NEEDED = ("params", "tokens", "loss")
NOT_READ = "none"
"""``--column flops=none``: no column is read for an optional role."""

_HINTS: Mapping[str, frozenset[str]] = {
    "params": frozenset(("param", "params", "parameter", "parameters", "mparams", "size")),
    "tokens": frozenset(("token", "tokens", "gtokens", "samples", "images", "examples", "documents")),
    "loss": frozenset(("loss", "nll", "xent", "entropy")),
}
"""Words in names of columns that may hold a role, which only a person can confirm."""
_COUNTS_OF_DATA = frozenset(
    ("step", "steps", "iter", "iters", "iterations", "updates", "epoch", "epochs", "ratio")
)
_NO_HINT = frozenset(("per", "log", "ln", "sec", "second", "vocab", "batch", "kqv", "step", "parallel", "context"))
_RATIO = re.compile(r"tok\w*?[ _]?per[ _]?par|^d ?/ ?n$", re.IGNORECASE)
_SHOWN = 40
"""Names of a wide table that a message lists."""


@dataclass(frozen=True)
class Columns:
    """The column of each role, by its name in the table."""

    named: dict[str, str]
    scales: dict[str, float] = field(default_factory=dict)
    """Factor of a role's numbers, from its header (``tokens (B)``)."""
    notes: tuple[str, ...] = ()
    derived: str = ""
    """``tokens`` or ``params`` where the table has C and not this: C = 6 N D gives it."""


def choose_columns(path: Path, raw: RawTable, given: Mapping[str, str]) -> Columns:
    """The column of each role: those that ``given`` maps, then by name.

    Raises FitError where a needed role has no column, or several with different values.
    """
    named = _mapped(path, raw, given)
    notes: list[str] = []
    scales: dict[str, float] = {}
    for role in ROLES:
        if role in named or role in given:
            continue
        free = [column for column in raw.header if column not in named.values()]
        choose = _loss_column if role == "loss" else _ranked_column
        column = choose(path, raw, role, free, notes)
        if column is not None:
            named[role] = column
    for role in ("params", "tokens", "flops", "budget", "unique_tokens"):
        if role in named and (scale := header_scale(named[role])) is not None:
            scales[role] = scale
            notes.append(f"{role} = column {named[role]!r} times {scale:g}, by its name")
    missing = [role for role in NEEDED if role not in named]
    derived = _derived(raw, named, missing)
    if missing and not derived:
        raise FitError(_missing(path, raw, missing))
    if derived and "flops" not in named:
        named["flops"] = named.pop("budget")
        scales.update({"flops": scales.pop("budget")} if "budget" in scales else {})
    if derived:
        formula = "D = C / 6 N" if derived == "tokens" else "N = C / 6 D"
        notes.append(f"the table has no {derived}: {formula} is used, with C = column {named['flops']!r}")
    return Columns(named, scales, tuple(notes), derived)


def _derived(raw: RawTable, named: Mapping[str, str], missing: Sequence[str]) -> str:
    """The role that C = 6 N D gives; empty where no C is there, or a column may hold the role itself."""
    if list(missing) not in (["tokens"], ["params"]) or not {"flops", "budget"} & set(named):
        return ""
    hints = _HINTS[missing[0]] | (_COUNTS_OF_DATA if missing[0] == "tokens" else {"model"})
    free = [column for column in raw.header if column not in named.values()]
    return "" if any(words_of(column) & hints for column in free) else missing[0]


def _mapped(path: Path, raw: RawTable, given: Mapping[str, str]) -> dict[str, str]:
    by_name = {name.strip().lower(): name for name in reversed(raw.header)}
    named = {}
    for role, column in given.items():
        if (role, column) == ("id", ROWS) and ROWS not in by_name:
            continue
        if column == NOT_READ and role in ROLES and role not in NEEDED and NOT_READ not in by_name:
            continue
        if role not in ROLES:
            raise FitError(f"there is no {role!r} to map; there is: {', '.join(ROLES)}")
        wanted = column if column in raw.header else by_name.get(column.strip().lower())
        if wanted is None:
            close = difflib.get_close_matches(column, raw.header, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise FitError(f"{path} has no column {column!r}{hint} It has: {_all_names(raw)}")
        _refuse_repeated(path, raw, role, wanted)
        named[role] = wanted
    return named


def _refuse_repeated(path: Path, raw: RawTable, role: str, column: str) -> None:
    if column in raw.repeated:
        copies = [
            name for name in raw.header if name == column or re.fullmatch(re.escape(column) + r" \(\d+\)", name)
        ]
        if not _agree(raw, copies):
            raise FitError(
                f"{path} has {len(copies)} columns named {column!r} with different values, so {role} is not "
                "determined: give each column its own name"
            )


def _ranked_column(path: Path, raw: RawTable, role: str, free: Sequence[str], notes: list[str]) -> str | None:
    for number, rank in enumerate(NAMES[role]):
        columns = [column for column in free if plain_name(column) in rank]
        if role == "status" and set(rank) <= FINISHED:
            columns = [column for column in columns if _is_flag(raw, column)]
        if not columns:
            continue
        if role == "id":
            return columns[0]
        if role == "params":
            columns += [column for column in free if plain_name(column) in ACTIVE and column not in columns]
        column = _only(path, raw, role, columns, notes)
        later = {name for other in NAMES[role][number + 1 :] for name in other} - {LETTERS.get(role)}
        others = [other for other in free if plain_name(other) in later and not _agree(raw, [column, other])]
        if others:
            notes.append(f"{role} = column {column!r}, rather than {_listed(others)}: --column {role}=COLUMN")
        if plain_name(column).lower() == LETTERS.get(role):
            notes.append(f"{role} = column {column!r}, by one letter: --column {role}=COLUMN names another")
        return column
    return None


def _is_flag(raw: RawTable, column: str) -> bool:
    cells = {str(row.get(column)).strip().lower() for _, row in raw.rows if not is_blank(row.get(column))}
    return cells <= YES | NO


def _loss_column(path: Path, raw: RawTable, role: str, free: Sequence[str], notes: list[str]) -> str | None:
    """A held-out loss, where there is one; otherwise the only loss."""
    free = [
        column
        for column in free
        if not re.search(r"(?<![a-z])(?:log|ln)\d*[ _]?(?:loss|nll)", column, re.IGNORECASE)
    ]
    words = {column: words_of(column) for column in free}
    losses = [column for column in free if words[column] & LOSS and not words[column] & NO_LOSS]
    losses += [column for column in free if {"cross", "entropy"} <= words[column] and not words[column] & NO_LOSS]
    held_out = [column for column in losses if words[column] & HELD_OUT]
    if held_out:
        column = _only(path, raw, role, held_out, notes)
        if others := [other for other in losses if other not in held_out]:
            notes.append(f"loss = column {column!r}, the held-out loss, rather than {_listed(others)}")
        return column
    if losses:
        column = _only(path, raw, role, losses, notes)
        if words[column] & TRAINING:
            notes.append(f"loss = column {column!r}, a training loss: a held-out loss is what a law is for")
        return column
    return _letter(raw, free, notes)


def _letter(raw: RawTable, free: Sequence[str], notes: list[str]) -> str | None:
    """L, where it is no number of layers."""
    column = next((column for column in free if plain_name(column) == LETTERS["loss"]), None)
    if column is not None:
        numbers = [NumberFormat().number_or_nan(row.get(column)) for _, row in raw.rows]
        if numbers and all(number.is_integer() for number in numbers):
            return None
        notes.append(f"loss = column {column!r}, by one letter: --column loss=COLUMN names another")
    return column


def _only(path: Path, raw: RawTable, role: str, columns: Sequence[str], notes: list[str]) -> str:
    """The first of columns that agree in every row. Raises FitError where they do not."""
    for column in columns:
        _refuse_repeated(path, raw, role, column)
    if len(columns) > 1:
        if not _agree(raw, columns):
            raise FitError(
                f"{path}: {role} could be {' or '.join(map(repr, columns))}, which hold different values: write "
                + " or ".join(f"--column {role}={_quoted(column)}" for column in columns)
            )
        notes.append(f"{role} = column {columns[0]!r}, which {_listed(columns[1:])} repeats")
    return columns[0]


def _agree(raw: RawTable, columns: Sequence[str]) -> bool:
    return all(
        len({str(row.get(column)) for column in columns}) == 1 or _are_one([row.get(column) for column in columns])
        for _, row in raw.rows
    )


def _are_one(cells: Sequence[object]) -> bool:
    numbers = [NumberFormat().number_or_nan(cell) for cell in cells]
    return all(math.isclose(number, numbers[0], rel_tol=1e-9) for number in numbers)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns))


def _all_names(raw: RawTable) -> str:
    more = f" and {len(raw.header) - _SHOWN} more" if len(raw.header) > _SHOWN else ""
    return ", ".join(raw.header[:_SHOWN]) + more if raw.header else "nothing"


def _quoted(column: str) -> str:
    return f"'{column}'" if re.search(r"[^\w./-]", column) else column


def _missing(path: Path, raw: RawTable, missing: Sequence[str]) -> str:
    message = (
        f"{path} has no column for {', '.join(missing)}. It has: {_all_names(raw)}. "
        f"Name each: {' '.join(f'--column {role}=COLUMN' for role in missing)}"
    )
    words = {column: words_of(column) for column in raw.header}
    for role in missing:
        likely = [column for column in raw.header if words[column] & _HINTS[role] and not words[column] & _NO_HINT]
        if likely and len(likely) <= 8:
            message += f"; {role} may be {' or '.join(f'--column {role}={_quoted(column)}' for column in likely)}"
    if "tokens" in missing and (steps := [column for column in raw.header if words[column] & _COUNTS_OF_DATA]):
        message += (
            f"; {_listed(steps[:3])} is no number of tokens: add a column of tokens, batch x sequence x steps"
        )
    if "tokens" in missing and (ratios := list(filter(_RATIO.search, raw.header))):
        message += f"; {_listed(ratios[:3])} is a ratio: add a column with its product with the parameters"
    if "loss" in missing:
        perplexities = [column for column in raw.header if words[column] & PERPLEXITY]
        if perplexities:
            message += f"; {_listed(perplexities[:4])} is a perplexity: add a column with its natural logarithm"
        bits = [column for column in raw.header if words[column] & {"bpb", "bpc", "bits"}]
        if bits:
            message += (
                f"; {_listed(bits[:4])} is in bits: --column loss={_quoted(bits[0])} fits it, with losses in bits"
            )
    if sum(not name.strip(" ()0123456789") for name in raw.header) > len(raw.header) / 2:
        message += "; the first line is read as the names of the columns: delete a title above them"
    return message
