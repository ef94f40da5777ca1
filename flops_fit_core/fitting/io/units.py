"""Rows whose numbers look like another unit: a person can tell which it is, so they are named and kept."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flops_fit_core.errors import FitError
from flops_fit_core.records import Diagnostic, Observation

BITS = math.log(2)
"""Nats in a bit."""

_SAYS_BITS = re.compile(r"(?:^|[\W_])(?:bits?|bpb|bpc|bpt|bpw)(?:$|[\W_])", re.IGNORECASE)
_BUDGET_TOLERANCE = math.log(1.1)
_ALL_ONE = "in one unit for all rows, optima and exponents are the same; E, A, B and losses are in that unit"


def refuse_units(
    path: Path,
    observations: Sequence[Observation],
    *,
    measured: Sequence[Observation],
    settled: set[str],
    scaled: set[str] | frozenset[str] = frozenset(),
    named: Mapping[str, str] | None = None,
) -> None:
    """Raises FitError where the numbers cannot be plain ones, with the ``--units`` to write.

    ``measured`` are the runs whose FLOPs the table gives. With them: a median C / 6 N D beyond 1e5 to either side
    (6 N D with images for D is up to 1,000 times off). Without: N in millions and D in billions, where some N is
    below 10,000 and no D / N reaches 10; a column of tokens where no D / N reaches 1/50, or all exceed 1e5 (real
    tables hold 0.5 to 10,000). ``settled`` holds the roles whose unit a person has given, ``scaled`` those whose
    name states it.
    """
    if not observations or settled & {"params", "tokens", "flops"}:
        return
    example = observations[0]
    shown = f"N = {example.params:g}, D = {example.tokens:g}"
    if scaled & {"params", "tokens"} and any(run.params > 1e14 or run.tokens > 1e17 for run in observations):
        roles = " ".join(f"--units {role}=1" for role in sorted(scaled & {"params", "tokens"}))
        raise FitError(
            f"{path}: {shown} in {example.id}, by the unit in the column's name, is too large: write {roles} "
            "where the column holds plain numbers"
        )
    if small := next((run for run in observations if min(run.params, run.tokens) < 1), None):
        guess = "1e9" if any(run.params < 1 for run in observations) else "1e6"
        raise FitError(
            f"{path}: N = {small.params:g}, D = {small.tokens:g} in {small.id}, and a number less than 1 is no "
            f"plain number: write for example --units params={guess} --units tokens=1e9"
            + (", or --units flops=1e18 (C gives the missing number)" if "flops" in (named or {}) else "")
        )
    if measured:
        _refuse_flops(path, measured)
    else:
        _refuse_ratio(path, observations, shown, named or {})


def _refuse_flops(path: Path, measured: Sequence[Observation]) -> None:
    ratio = sorted(map(_ratio, measured))[len(measured) // 2]
    if 1e-5 < ratio < 1e5:
        return
    example = min(measured, key=lambda run: abs(math.log(_ratio(run) / ratio)))
    power = 3 * round(-math.log10(ratio) / 3)
    guess = f"--units flops=1e{power} (by the ratio)"
    if all(0.3 < run.flops / 6 / run.params < 3 for run in measured):
        guess = "--column flops=none for C = 6 N D (the column holds about 6 N: FLOPs per token)"
    elif all(run.params < 1e4 for run in measured):
        guess = "--units params=1e6 --units tokens=1e9"
    if abs(math.log10(ratio) + math.log10(8.64e19)) < 0.5:
        guess = "--units flops=8.64e19 for petaFLOP/s-days"
    raise FitError(
        f"{path}: N = {example.params:g}, D = {example.tokens:g}, C = {example.flops:g} in {example.id}: C is "
        f"{ratio:.2g} times 6 N D, so one of them is not in plain numbers: write {guess}, --units flops=1 where "
        "they are plain, or --column flops=none where the column is no C of a run"
    )


def _refuse_ratio(path: Path, observations: Sequence[Observation], shown: str, named: Mapping[str, str]) -> None:
    ratios = [run.tokens / run.params for run in observations]
    first = observations[0].id
    if any(run.params < 1e4 for run in observations) and max(ratios) < 10:
        raise FitError(
            f"{path}: {shown} in {first}, where some row has fewer than 10,000 parameters and none has 10 tokens "
            "per parameter, so these are not plain numbers: write --units params=1e6 --units tokens=1e9 for "
            "millions of parameters and billions of tokens, or --units params=1 where they are plain"
        )
    if max(ratios) < 0.02 and "tok" in named.get("tokens", "").lower():
        raise FitError(
            f"{path}: {shown} in {first}, and no row has a token per 50 parameters, so {named['tokens']!r} does "
            "not count tokens: write --units tokens=1e9 (for example; tokens per step, where it counts steps), or "
            "--units tokens=1 where it does"
        )
    if min(ratios) > 1e5 and len(ratios) > 2:
        raise FitError(
            f"{path}: {shown} in {first}, and every row has more than 100,000 tokens per parameter, so N is not "
            "in plain numbers: write --units params=1e6 (for example), or --units params=1 where it is"
        )


def budget_as_named(observations: Sequence[Observation], column: str, *, has_flops: bool) -> list[Diagnostic]:
    """A warning where the nominal budgets are not the runs' C."""
    ratios = [run.budget / run.flops for run in observations if run.budget is not None]
    off = [ratio for ratio in ratios if abs(math.log(ratio)) > _BUDGET_TOLERANCE]
    if len(off) <= len(ratios) // 2:
        return []
    is_named = "the column of FLOPs" if has_flops else "6 N D"
    message = (
        f"column {column!r} is {min(ratios):.2g} to {max(ratios):.2g} times {is_named} in these rows: C is "
        f"{is_named}, and {column!r} only groups the runs; where it is what training cost, write --column "
        f"flops={column}"
    )
    return [Diagnostic(code="budget", message=message)]


def suspicious_units(observations: Sequence[Observation], *, has_flops: bool = True) -> list[Diagnostic]:
    """One diagnostic a kind of mistake, naming the rows that look like it."""
    checks: list[tuple[str, Callable[[Observation], bool], str]] = [
        (
            "forward-only-flops",
            lambda one: abs(_ratio(one) * 3 - 1) < 1e-3,
            "flops is exactly a third of 6 N D, which is the forward pass alone; multiply it by 3",
        ),
        (
            "flops-unit",
            lambda one: abs(math.log10(_ratio(one))) > 2,
            "flops is {ratio:.2g} times 6 N D: a column in millions, or in PetaFLOP/s-days? Write plain numbers",
        ),
        (
            "tokens-unit",
            lambda one: one.tokens < 1e5 and one.params > 1e6,
            "fewer tokens than any such model is trained on: in millions or billions? Write plain numbers",
        ),
        (
            "params-unit",
            lambda one: one.params < 1e4 and one.tokens > 1e9,
            "few parameters and more than a billion tokens: N in millions or billions? Write plain numbers",
        ),
        (
            "loss-unit",
            lambda one: one.loss > 15,
            "more than 15 nats a token: a perplexity, or a sum? Write nats a token",
        ),
    ]
    found = [] if has_flops else _odd_ratios(observations)
    for code, wrong, text in checks:
        if rows := [one for one in observations if wrong(one)]:
            message = text.format(ratio=_ratio(rows[0]))
            found.append(Diagnostic(code=code, message=f"{name_rows([one.id for one in rows])}: {message}"))
    return found


def _odd_ratios(observations: Sequence[Observation]) -> list[Diagnostic]:
    """A note where D / N is rarely seen; without FLOPs nothing else shows the units."""
    rows = [run for run in observations if not 0.5 <= run.tokens / run.params <= 10_000]
    if observations and all(run.params < 1e4 for run in observations):
        message = (
            "no row has 10,000 parameters: right where N and D are plain numbers, otherwise write --units "
            "params=1e6 (for example)"
        )
        return [Diagnostic(code="odd-units", message=message, severity="note")]
    if not rows:
        return []
    message = (
        f"{name_rows([run.id for run in rows])}: {rows[0].tokens / rows[0].params:.3g} tokens per parameter, "
        "which is rare: right where N and D are plain numbers, otherwise write --units params=1e6 (for example)"
    )
    return [Diagnostic(code="odd-units", message=message, severity="note")]


def table_in_bits(
    observations: Sequence[Observation], column: str, others: Mapping[str, Sequence[float]]
) -> list[Diagnostic]:
    """Whether all losses, which come from ``column``, are in bits: its name or another column shows it.

    ``others`` holds the table's further numbers, one an observation, NaN where a row has none. Without a
    sign of this kind bits are not told from nats: the law fits both alike.
    """
    losses = [one.loss for one in observations]
    found = [next(_evidence(losses, others), "")]
    if losses and not found[0] and _SAYS_BITS.search(column):
        found.append(
            f"column {column!r} is in bits by its name: multiply it by ln 2 = 0.6931 for nats; {_ALL_ONE}"
        )
    found += [_above_uniform(observations, name, sizes) for name, sizes in others.items()]
    return [Diagnostic(code="bits", message=message) for message in found if message]


def _evidence(losses: Sequence[float], others: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Columns that the losses are 1 / ln 2 times, or the base-2 logarithm of."""
    for name, values in others.items() if len(losses) > 2 else ():
        pairs = list(zip(losses, values, strict=True))
        if all(value > 0 and abs(loss * BITS / value - 1) < 1e-3 for loss, value in pairs):
            yield (
                f"the loss is 1.4427 times column {name!r} in every row, so it is in bits: use "
                f"--column loss={name} for nats; {_ALL_ONE}"
            )
        elif all(value > 1 and abs(loss / math.log2(value) - 1) < 1e-3 for loss, value in pairs):
            yield (
                f"the loss is the base-2 logarithm of column {name!r} in every row, so it is in bits: multiply it "
                f"by ln 2 = 0.6931 for nats; {_ALL_ONE}"
            )


def _above_uniform(observations: Sequence[Observation], name: str, sizes: Sequence[float]) -> str:
    if name.strip().lower() not in ("vocab", "vocab_size", "vocabulary", "n_vocab"):
        return ""
    pairs = zip(observations, sizes, strict=True)
    rows = [one.id for one, size in pairs if size > 1 and one.loss > 1.02 * math.log(size)]
    if not rows:
        return ""
    return (
        f"{name_rows(rows)}: worse than ln {name}, the nats of a guess among all tokens: bits? Then multiply by "
        "ln 2 = 0.6931"
    )


def looks_like_bits(ln_residual: float) -> bool:
    """Whether a loss that is off by this much in ln L was written in bits among nats, or the other way round."""
    return abs(abs(ln_residual) + math.log(BITS)) < 0.06


def name_rows(ids: Sequence[str]) -> str:
    """The first eight by name, and how many more."""
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return ", ".join(ids[:8]) + more


def _ratio(one: Observation) -> float:
    return one.flops / 6 / one.params / one.tokens
