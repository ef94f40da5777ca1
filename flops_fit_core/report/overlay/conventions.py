"""How two sides of an overlay count N, C, D and the loss, and which quantities can therefore be compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from flops_fit_core.records import LawFit
from flops_fit_core.report.datatable import singular
from flops_fit_core.report.overlay.side import Side

Verdict = Literal["same", "different", "not recorded"]
Quantity = Literal["params", "tokens", "loss"]
QUANTITIES: tuple[Quantity, ...] = ("params", "tokens", "loss")

_COUNT_WORDS = frozenset(("embed", "emb", "embedding", "non", "no", "total", "active", "activated", "matmul"))
"""Words of a column name that state which parameters N counts."""
_FINGERPRINT = 200
"""Most characters of a fingerprint on the page; a longer one is cut to 12."""


@dataclass(frozen=True)
class Convention:
    """A convention of both sides."""

    name: str
    first: str
    second: str
    verdict: Verdict
    concerns: tuple[Quantity, ...]
    """The quantities that cannot be compared if the convention differs."""
    difference: str = ""
    """The difference in words, to follow "because"."""


def list_conventions(first: Side, second: Side, unit_problem: str = "") -> list[Convention]:
    """The conventions of N, C, D, the data and the loss.

    Args:
        first: A side.
        second: The other side.
        unit_problem: Evidence in the losses that they have different units; empty for none.
    """
    conventions = [
        _compare("N", _params, first, second, ("params",), "N is counted differently"),
        _compare("C", _flops, first, second, QUANTITIES, "C is counted differently"),
        _compare("D", _unit, first, second, ("tokens", "loss"), "D has different units"),
        _compare("Dataset", _dataset, first, second, ("loss",), "the datasets differ"),
        _compare("Held-out loss", _loss, first, second, ("loss",), "the held-out losses differ"),
        _compare("Unit of the loss", _loss_unit, first, second, ("loss",), "the losses have different units"),
    ]
    if "tokenizer" in {*first.labels, *second.labels}:  # the fingerprint of a study includes its tokenizer
        tokenizers = _compare("Tokenizer", _tokenizer, first, second, ("tokens", "loss"), "the tokenizers differ")
        conventions.insert(4, tokenizers)
    if unit_problem and conventions[-1].verdict != "different":
        names = (conventions[-1].first, conventions[-1].second)
        conventions[-1] = Convention("Unit of the loss", *names, "different", ("loss",), unit_problem)
    return conventions


def find_refused(conventions: Sequence[Convention]) -> dict[Quantity, str]:
    """Quantity -> why it cannot be compared, in words."""
    reasons: dict[Quantity, list[str]] = {}
    for convention in conventions:
        if convention.verdict == "different":
            for quantity in convention.concerns:
                reasons.setdefault(quantity, []).append(convention.difference)
    return {quantity: " and ".join(texts) for quantity, texts in reasons.items()}


def list_assumed(conventions: Sequence[Convention], quantity: Quantity | None = None) -> list[str]:
    """The conventions that a side does not record, in words: the page assumes that they are the same.

    ``quantity`` selects those that concern it.
    """
    return [
        _IN_WORDS.get(convention.name, convention.name)
        for convention in conventions
        if convention.verdict == "not recorded" and (quantity is None or quantity in convention.concerns)
    ]


_IN_WORDS = {
    "N": "the definition of N",
    "C": "the count of C",
    "D": "the unit of D",
    "Dataset": "the data",
    "Tokenizer": "the tokenizer",
    "Held-out loss": "the held-out set",
    "Unit of the loss": "the unit of the loss",
}


@dataclass(frozen=True)
class _Record:
    """A convention of one side: the text on the page, and the value to compare."""

    text: str
    value: str | None = None
    """None if it is not recorded."""
    kind: str = ""
    """Values of different kinds, such as a column and a held-out set, cannot be compared."""
    proves_equality: bool = True
    """Whether equal values mean equal conventions. Equal names of columns do not."""


_NOT_RECORDED = _Record("not recorded")


def _compare(
    name: str,
    read: Callable[[Side], _Record],
    first: Side,
    second: Side,
    concerns: tuple[Quantity, ...],
    difference: str,
) -> Convention:
    a, b = read(first), read(second)
    return Convention(name, a.text, b.text, _judge(a, b), concerns, difference)


def _judge(first: _Record, second: _Record) -> Verdict:
    if first.value is None or second.value is None or first.kind != second.kind:
        return "not recorded"
    if first.value != second.value:
        return "different"
    return "same" if first.proves_equality and second.proves_equality else "not recorded"


def _params(side: Side) -> _Record:
    if (name := _recorded(side, "params_name")) is not None:
        return _Record(name, name)
    if "params" not in side.columns:
        return _NOT_RECORDED
    column = side.columns["params"]
    words = _COUNT_WORDS & set(re.split(r"[\W_]+", column.lower()))
    return _Record(f"column {column!r}", " ".join(sorted(words)) or None, "column")


def _flops(side: Side) -> _Record:
    if (name := _recorded(side, "flops_name")) is not None:
        return _Record(name, name)
    if not side.columns:
        return _NOT_RECORDED
    return _Record(f"column {side.columns['flops']!r}" if "flops" in side.columns else "6 N D, with N as given")


def _unit(side: Side) -> _Record:
    if (name := _recorded(side, "unit")) is not None:
        return _Record(name, name)
    return _Record(f"column {side.columns['tokens']!r}") if "tokens" in side.columns else _NOT_RECORDED


def _recorded(side: Side, name: str) -> str | None:
    """A convention in a plan, or in the fit of a study; None for a table and for its fit."""
    source = side.plan if side.plan is not None else side.fit if _names_conventions(side) else None
    return None if source is None else str(getattr(source, name))


def _names_conventions(side: Side) -> bool:
    """Whether a fit without its study records its conventions: a fit of a table has the defaults."""
    return side.fit is not None and side.fit.params_name != LawFit.model_fields["params_name"].default


def _dataset(side: Side) -> _Record:
    """The name and the fingerprint of the data, which includes the tokenizer."""
    if side.plan is None:
        return _label(side, "dataset")
    names = ", ".join(sorted({run.dataset.name for run in side.plan.runs}))
    fingerprints = sorted({run.fingerprint for run in side.plan.runs})
    shown = ", ".join(text if len(text) <= _FINGERPRINT else text[:12] for text in fingerprints)
    return _Record(f"{names}, fingerprint {shown}", f"{names} {fingerprints}", "study")


def _loss(side: Side) -> _Record:
    if side.plan is not None:
        return _held_out_set(side.eval_set)
    if side.fit is not None and _names_conventions(side):
        return _held_out_set(side.fit.eval_set)
    if "held-out set" in side.labels:
        return _label(side, "held-out set")
    if "loss" in side.columns:
        return _Record(
            f"column {side.columns['loss']!r}", side.columns["loss"].lower(), "column", proves_equality=False
        )
    return _NOT_RECORDED


def _held_out_set(name: str | None) -> _Record:
    return _Record(name or "main held-out set", name or "", "study")


def _loss_unit(side: Side) -> _Record:
    if any(item.code == "bits" for item in side.diagnostics):
        return _Record("bits", "bits")
    if side.plan is not None or _names_conventions(side):
        return _Record(f"nats per {singular(side.unit)}", "nats")
    return _Record("taken as nats", "nats", proves_equality=False)


def _tokenizer(side: Side) -> _Record:
    return _label(side, "tokenizer")


def _label(side: Side, name: str) -> _Record:
    text = side.labels.get(name)
    return _NOT_RECORDED if text is None else _Record(text, text, "label")
