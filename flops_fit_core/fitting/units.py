"""Rows whose numbers look like another unit: a person can tell which it is, so they are named and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flops_fit_core.records import Diagnostic, Observation

BITS = math.log(2)
"""Nats in a bit."""


def suspicious_units(observations: Sequence[Observation]) -> list[Diagnostic]:
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
    found = []
    for code, wrong, text in checks:
        if rows := [one for one in observations if wrong(one)]:
            message = text.format(ratio=_ratio(rows[0]))
            found.append(Diagnostic(code=code, message=f"{name_rows([one.id for one in rows])}: {message}"))
    return found


def looks_like_bits(ln_residual: float) -> bool:
    """Whether a loss that is off by this much in ln L was written in bits among nats, or the other way round."""
    return abs(abs(ln_residual) + math.log(BITS)) < 0.06


def name_rows(ids: Sequence[str]) -> str:
    """The first eight by name, and how many more."""
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return ", ".join(ids[:8]) + more


def _ratio(one: Observation) -> float:
    return one.flops / 6 / one.params / one.tokens
