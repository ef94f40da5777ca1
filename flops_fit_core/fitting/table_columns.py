"""Which column of a table holds N, D, C, the loss and the rest; two columns that could are an error, never a
guess."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.histories import NAME_COLUMNS, ROWS
from flops_fit_core.fitting.table_files import RawTable
from flops_fit_core.fitting.table_numbers import parse_scale

NEEDED = ("params", "tokens", "loss")

_NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "params": (
        (
            *("params", "parameters", "n_params", "num_params", "nparams", "param_count", "params_count"),
            *("parameter_count", "num_parameters", "n_parameters", "model_size", "model_params"),
        ),
        (
            *("non_embedding_params", "non_emb_params", "params_non_embedding", "params_no_embed", "n_no_emb"),
            *("non_embedding_parameters", "total_params", "params_total", "total_parameters", "n_total"),
        ),
        ("n",),
    ),
    "tokens": (
        (
            *("tokens", "train_tokens", "n_tokens", "num_tokens", "training_tokens", "tokens_trained"),
            *("tokens_seen", "total_tokens", "token_count", "train_token_count"),
        ),
        ("dataset_size", "data_size", "samples", "train_samples", "n_samples", "samples_seen", "images"),
        ("d",),
    ),
    "flops": (
        (
            *("flops", "flop", "train_flops", "training_flops", "training_flop", "total_flops", "total_flop"),
            *("num_flops", "n_flops", "flops_total"),
        ),
        ("compute", "training_compute"),
        ("c",),
    ),
    "budget": (("budget", "compute_budget", "flops_budget", "flop_budget", "nominal_flops", "isoflop_budget"),),
    "unique_tokens": (("unique_tokens", "unique", "u_d"),),
    "id": (
        *((name,) for name in ("id", "run_id", "run_uuid", "wandb_run_id", "run")),
        *((name.replace(" ", "_"),) for name in NAME_COLUMNS),
    ),
    "seed": (("seed", "random_seed", "rng_seed"),),
    "trajectory": (("trajectory", "trunk"),),
    "status": (("status",), ("state", "run_status", "run_state")),
}
"""Names of each role in ranks, best first; within a rank two columns with different values are ambiguous."""

ROLES = (*_NAMES, "loss")
"""Everything that a column can hold."""
LETTERS = {"params": "n", "tokens": "d", "flops": "c", "loss": "l"}
"""Names of one letter, which mean other things too (d is a width): read where no full name is there."""

_HELD_OUT = frozenset(("val", "valid", "validation", "eval", "evaluation", "test", "heldout", "held", "dev"))
_TRAINING = frozenset(("train", "training", "smooth", "smoothed", "ema", "running", "avg", "moving"))
_LOSS = frozenset(("loss", "nll", "xent", "ce"))
_NO_LOSS = frozenset(
    (
        *("se", "std", "stderr", "sem", "err", "error", "var", "sd", "ci", "low", "high", "lower", "upper", "aux"),
        *("scale", "weight", "coef", "fn", "function", "type", "name", "step", "delta", "diff", "spike", "spikes"),
        *("pred", "predicted", "fit", "z", "router", "balance", "balancing", "reduction"),
    )
)
_PERPLEXITY = frozenset(("ppl", "perplexity"))
_UNIT_WORDS = {"millions": 1e6, "billions": 1e9, "trillions": 1e12, "thousands": 1e3}


@dataclass(frozen=True)
class Columns:
    """The column of each role, by its name in the table."""

    named: dict[str, str]
    scales: dict[str, float] = field(default_factory=dict)
    """Factor of a role's numbers, from its header (``tokens (B)``)."""
    notes: tuple[str, ...] = ()


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
    if missing := [role for role in NEEDED if role not in named]:
        raise FitError(_missing(path, raw, missing))
    return Columns(named, scales, tuple(notes))


def header_scale(column: str) -> float | None:
    """The factor that a column's name states: ``params (M)``, ``tokens_B``, ``D [billions]``, ``flops (1e18)``."""
    match = re.search(r"[(\[]\s*(?:in\s+)?([^)\]]+?)\s*[)\]]\s*$", column) or re.search(
        r"(?<=[a-z])[_ ](?:in[_ ])?([MBT]|[a-zA-Z]+ions)$", column
    )
    if match is None:
        return None
    word = match[1].strip()
    if word.lower() in _UNIT_WORDS:
        return _UNIT_WORDS[word.lower()]
    power = re.fullmatch(r"(?:x\s*)?(1e\d+|10\s*\^\s*\d+)", word.lower())
    return parse_scale(power[1] if power else word) if power or not word.isdigit() else None


def plain_name(column: str) -> str:
    """A name without its unit, in lower case, with ``_`` between words."""
    name = re.sub(r"[(\[][^)\]]*[)\]]\s*$", "", column).strip()
    if header_scale(name) is not None:
        name = re.sub(r"[_ ](?:in[_ ])?[A-Za-z]+$", "", name)
    return re.sub(r"[\s\-./]+", "_", name.strip().lower()).strip("_")


def _mapped(path: Path, raw: RawTable, given: Mapping[str, str]) -> dict[str, str]:
    by_name = {name.strip().lower(): name for name in reversed(raw.header)}
    named = {}
    for role, column in given.items():
        if (role, column) == ("id", ROWS) and ROWS not in by_name:
            continue
        if role not in ROLES:
            raise FitError(f"there is no {role!r} to map; there is: {', '.join(ROLES)}")
        wanted = column if column in raw.header else by_name.get(column.strip().lower())
        if wanted is None:
            close = difflib.get_close_matches(column, raw.header, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise FitError(f"{path} has no column {column!r}{hint} It has: {', '.join(raw.header)}")
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
    for rank in _NAMES[role]:
        columns = [column for column in free if plain_name(column) in rank]
        if not columns:
            continue
        if role == "id":
            return columns[0]
        column = _only(path, raw, role, columns, notes)
        if rank == (LETTERS.get(role),):
            notes.append(f"{role} = column {column!r}, by one letter: --map {role}=COLUMN names another")
        return column
    return None


def _loss_column(path: Path, raw: RawTable, role: str, free: Sequence[str], notes: list[str]) -> str | None:
    """A held-out loss, where there is one; otherwise the only loss."""
    words = {column: _words(column) for column in free}
    losses = [column for column in free if words[column] & _LOSS and not words[column] & _NO_LOSS]
    losses += [column for column in free if {"cross", "entropy"} <= words[column] and not words[column] & _NO_LOSS]
    held_out = [column for column in losses if words[column] & _HELD_OUT]
    if held_out:
        column = _only(path, raw, role, held_out, notes)
        if others := [other for other in losses if other not in held_out]:
            notes.append(f"loss = column {column!r}, the held-out loss, rather than {_listed(others)}")
        return column
    if losses:
        column = _only(path, raw, role, losses, notes)
        if words[column] & _TRAINING:
            notes.append(f"loss = column {column!r}, a training loss: a held-out loss is what a law is for")
        return column
    return _letter(free, notes)


def _letter(free: Sequence[str], notes: list[str]) -> str | None:
    column = next((column for column in free if plain_name(column) == LETTERS["loss"]), None)
    if column is not None:
        notes.append(f"loss = column {column!r}, by one letter: --map loss=COLUMN names another")
    return column


def _words(column: str) -> frozenset[str]:
    parted = re.sub(r"([a-z])([A-Z])", r"\1 \2", column)
    return frozenset(re.split(r"[^a-z]+", parted.lower()))


def _only(path: Path, raw: RawTable, role: str, columns: Sequence[str], notes: list[str]) -> str:
    """The first of columns that agree in every row. Raises FitError where they do not."""
    for column in columns:
        _refuse_repeated(path, raw, role, column)
    if len(columns) > 1:
        if not _agree(raw, columns):
            raise FitError(
                f"{path}: {role} could be {' or '.join(map(repr, columns))}, which hold different values: write "
                + " or ".join(f"--map {role}={_quoted(column)}" for column in columns)
            )
        notes.append(f"{role} = column {columns[0]!r}, which {_listed(columns[1:])} repeats")
    return columns[0]


def _agree(raw: RawTable, columns: Sequence[str]) -> bool:
    return all(len({str(row.get(column)) for column in columns}) == 1 for _, row in raw.rows)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns))


def _quoted(column: str) -> str:
    return f"'{column}'" if re.search(r"[^\w./-]", column) else column


def _missing(path: Path, raw: RawTable, missing: Sequence[str]) -> str:
    message = (
        f"{path} has no column for {', '.join(missing)}. It has: {', '.join(raw.header) or 'nothing'}. "
        f"Name each: {' '.join(f'--map {role}=COLUMN' for role in missing)}"
    )
    if "loss" in missing:
        perplexities = [column for column in raw.header if _words(column) & _PERPLEXITY]
        if perplexities:
            message += f"; {_listed(perplexities)} is a perplexity: add a column with its natural logarithm"
        bits = [column for column in raw.header if _words(column) & {"bpb", "bpc", "bits"}]
        if bits:
            message += f"; {_listed(bits)} is in bits: --map loss={_quoted(bits[0])} fits it, with losses in bits"
    return message
