"""Checks of units. Impossible units are errors; suspicious rows are named in diagnostics and kept."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flops_fit_core.errors import FitError
from flops_fit_core.records import Diagnostic, Observation

NATS_PER_BIT = math.log(2)
"""Nats per bit."""

_BITS_NAME = re.compile(r"(?:^|[\W_])(?:bits?|bpb|bpc|bpt|bpw)(?:$|[\W_])", re.IGNORECASE)
_BUDGET_TOLERANCE = math.log(1.1)
_UNIFORM_UNIT = (
    "if all rows have the same unit, optima and exponents do not change, and E, A, B and losses are in that unit"
)


def refuse_units(
    path: Path,
    observations: Sequence[Observation],
    *,
    with_flops: Sequence[Observation],
    confirmed: set[str],
    scaled: set[str] | frozenset[str] = frozenset(),
    by_role: Mapping[str, str] | None = None,
) -> None:
    """Raises FitError, with the ``--units`` to write, if the numbers cannot be in plain units.

    ``with_flops`` are the runs with FLOPs in the table. If there are any, the median C / 6 N D must lie within a
    factor of 1e5 of 1 (6 N D with images for D is wrong by up to 1,000 times). Otherwise these are errors: some N
    below 10,000 and no D / N of 10 or more (N in millions and D in billions); a column of tokens with every D / N
    below 1/50; every D / N above 1e5. Real tables have D / N of 0.5 to 10,000. ``confirmed`` are the roles with a
    unit from the user, ``scaled`` those with a unit in the column's name.
    """
    if not observations or confirmed & {"params", "tokens", "flops"}:
        return
    example = observations[0]
    sizes = f"N = {example.params:g}, D = {example.tokens:g}"
    if scaled & {"params", "tokens"} and any(run.params > 1e14 or run.tokens > 1e17 for run in observations):
        roles = " ".join(f"--units {role}=1" for role in sorted(scaled & {"params", "tokens"}))
        raise FitError(
            f"{path}: {sizes} in {example.id} is too large with the unit in the column's name: if the column "
            f"holds plain numbers, write {roles}"
        )
    if small := next((run for run in observations if min(run.params, run.tokens) < 1), None):
        guess = "1e9" if any(run.params < 1 for run in observations) else "1e6"
        raise FitError(
            f"{path}: N = {small.params:g}, D = {small.tokens:g} in {small.id}: a value below 1 is not a "
            f"plain number: write for example --units params={guess} --units tokens=1e9"
            + (", or --units flops=1e18 (C gives the missing number)" if "flops" in (by_role or {}) else "")
        )
    if with_flops:
        _refuse_flops(path, with_flops)
    else:
        _refuse_ratio(path, observations, sizes, by_role or {})


def _refuse_flops(path: Path, runs: Sequence[Observation]) -> None:
    ratio = sorted(map(_ratio, runs))[len(runs) // 2]
    if 1e-5 < ratio < 1e5:
        return
    example = min(runs, key=lambda run: abs(math.log(_ratio(run) / ratio)))
    power = 3 * round(-math.log10(ratio) / 3)
    guess = f"--units flops=1e{power} (by the ratio)"
    if all(0.3 < run.flops / 6 / run.params < 3 for run in runs):
        guess = "--column flops=none for C = 6 N D (the column holds about 6 N: FLOPs per token)"
    elif all(run.params < 1e4 for run in runs):
        guess = "--units params=1e6 --units tokens=1e9"
    if abs(math.log10(ratio) + math.log10(8.64e19)) < 0.5:
        guess = "--units flops=8.64e19 for petaFLOP/s-days"
    raise FitError(
        f"{path}: N = {example.params:g}, D = {example.tokens:g}, C = {example.flops:g} in {example.id}: C is "
        f"{ratio:.2g} times 6 N D, so N, D or C is not in plain numbers: write {guess}, --units flops=1 if "
        "they are plain, or --column flops=none if the column does not hold the C of a run"
    )


def _refuse_ratio(path: Path, observations: Sequence[Observation], sizes: str, by_role: Mapping[str, str]) -> None:
    ratios = [run.tokens / run.params for run in observations]
    first = observations[0].id
    if any(run.params < 1e4 for run in observations) and max(ratios) < 10:
        raise FitError(
            f"{path}: {sizes} in {first}: some row has fewer than 10,000 parameters and no row has 10 tokens "
            "per parameter, so N and D are not plain numbers: write --units params=1e6 --units tokens=1e9 for "
            "millions of parameters and billions of tokens, or --units params=1 if they are plain"
        )
    if max(ratios) < 0.02 and "tok" in by_role.get("tokens", "").lower():
        raise FitError(
            f"{path}: {sizes} in {first}: no row has a token per 50 parameters, so {by_role['tokens']!r} does "
            "not count tokens: write --units tokens=1e9 (for example; the tokens per step if it counts steps), or "
            "--units tokens=1 if it does"
        )
    if min(ratios) > 1e5 and len(ratios) > 2:
        raise FitError(
            f"{path}: {sizes} in {first}: every row has more than 100,000 tokens per parameter, so N is not "
            "in plain numbers: write --units params=1e6 (for example), or --units params=1 if it is"
        )


def check_budget(observations: Sequence[Observation], column: str, *, has_flops: bool) -> list[Diagnostic]:
    """Warn if the nominal budgets differ from the runs' C."""
    ratios = [run.budget / run.flops for run in observations if run.budget is not None]
    mismatched = [ratio for ratio in ratios if abs(math.log(ratio)) > _BUDGET_TOLERANCE]
    if len(mismatched) <= len(ratios) // 2:
        return []
    quantity = "the column of FLOPs" if has_flops else "6 N D"
    message = (
        f"column {column!r} is {min(ratios):.2g} to {max(ratios):.2g} times {quantity} in these rows: C is "
        f"{quantity}, and {column!r} only groups the runs; if it is the training compute, write --column "
        f"flops={column}"
    )
    return [Diagnostic(code="budget", message=message)]


def check_units(observations: Sequence[Observation], *, has_flops: bool = True) -> list[Diagnostic]:
    """One diagnostic per kind of mistake, with the suspicious rows."""
    checks: list[tuple[str, Callable[[Observation], bool], str]] = [
        (
            "forward-only-flops",
            lambda run: abs(_ratio(run) * 3 - 1) < 1e-3,
            "flops is exactly a third of 6 N D, the forward pass alone; multiply it by 3",
        ),
        (
            "flops-unit",
            lambda run: abs(math.log10(_ratio(run))) > 2,
            "flops is {ratio:.2g} times 6 N D: a column in millions, or in PetaFLOP/s-days? Write plain numbers",
        ),
        (
            "tokens-unit",
            lambda run: run.tokens < 1e5 and run.params > 1e6,
            "unusually few tokens for a model of this size: in millions or billions? Write plain numbers",
        ),
        (
            "params-unit",
            lambda run: run.params < 1e4 and run.tokens > 1e9,
            "few parameters and more than a billion tokens: N in millions or billions? Write plain numbers",
        ),
        (
            "loss-unit",
            lambda run: run.loss > 15,
            "more than 15 nats per token: a perplexity, or a sum? Write nats per token",
        ),
    ]
    diagnostics = [] if has_flops else _check_ratios(observations)
    for code, is_suspicious, template in checks:
        if rows := [run for run in observations if is_suspicious(run)]:
            message = template.format(ratio=_ratio(rows[0]))
            diagnostics.append(Diagnostic(code=code, message=f"{name_rows([run.id for run in rows])}: {message}"))
    return diagnostics


def _check_ratios(observations: Sequence[Observation]) -> list[Diagnostic]:
    """A note for unusual D / N, the only sign of wrong units without FLOPs."""
    rows = [run for run in observations if not 0.5 <= run.tokens / run.params <= 10_000]
    if observations and all(run.params < 1e4 for run in observations):
        message = (
            "no row has 10,000 parameters: correct if N and D are plain numbers; otherwise write --units "
            "params=1e6 (for example)"
        )
        return [Diagnostic(code="odd-units", message=message, severity="note")]
    if not rows:
        return []
    message = (
        f"{name_rows([run.id for run in rows])}: {rows[0].tokens / rows[0].params:.3g} tokens per parameter, "
        "which is rare: correct if N and D are plain numbers; otherwise write --units params=1e6 (for example)"
    )
    return [Diagnostic(code="odd-units", message=message, severity="note")]


def check_bits(
    observations: Sequence[Observation], column: str, other_columns: Mapping[str, Sequence[float]]
) -> list[Diagnostic]:
    """Warn about losses of ``column`` in bits, as indicated by its name or by another column.

    ``other_columns`` holds the other numbers of the table, one per observation, NaN if missing. Without these
    signs, bits cannot be distinguished from nats: the law fits both equally well.
    """
    losses = [run.loss for run in observations]
    messages = [next(_find_bits_columns(losses, other_columns), "")]
    if losses and not messages[0] and _BITS_NAME.search(column):
        messages.append(
            f"column {column!r} is in bits according to its name: multiply by ln 2 = 0.6931 for nats; "
            + _UNIFORM_UNIT
        )
    messages += [_check_uniform_loss(observations, name, sizes) for name, sizes in other_columns.items()]
    return [Diagnostic(code="bits", message=message) for message in messages if message]


def _find_bits_columns(losses: Sequence[float], other_columns: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Messages for columns equal to the loss times ln 2, or with the loss as their base-2 logarithm."""
    for name, values in other_columns.items() if len(losses) > 2 else ():
        pairs = list(zip(losses, values, strict=True))
        if all(value > 0 and abs(loss * NATS_PER_BIT / value - 1) < 1e-3 for loss, value in pairs):
            yield (
                f"the loss is 1.4427 times column {name!r} in every row, so it is in bits: use "
                f"--column loss={name} for nats; {_UNIFORM_UNIT}"
            )
        elif all(value > 1 and abs(loss / math.log2(value) - 1) < 1e-3 for loss, value in pairs):
            yield (
                f"the loss is the base-2 logarithm of column {name!r} in every row, so it is in bits: multiply it "
                f"by ln 2 = 0.6931 for nats; {_UNIFORM_UNIT}"
            )


def _check_uniform_loss(observations: Sequence[Observation], name: str, sizes: Sequence[float]) -> str:
    if name.strip().lower() not in ("vocab", "vocab_size", "vocabulary", "n_vocab"):
        return ""
    pairs = zip(observations, sizes, strict=True)
    rows = [run.id for run, size in pairs if size > 1 and run.loss > 1.02 * math.log(size)]
    if not rows:
        return ""
    return (
        f"{name_rows(rows)}: loss above ln {name}, the loss in nats of a uniform guess: in bits? Then multiply by "
        "ln 2 = 0.6931"
    )


def looks_like_bits(ln_residual: float) -> bool:
    """Whether a residual of ln L has the size of a mix of bits and nats."""
    return abs(abs(ln_residual) + math.log(NATS_PER_BIT)) < 0.06


def name_rows(ids: Sequence[str]) -> str:
    """The first eight ids, and the number of further ids."""
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return ", ".join(ids[:8]) + more


def _ratio(run: Observation) -> float:
    return run.flops / 6 / run.params / run.tokens
