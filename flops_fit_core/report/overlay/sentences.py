"""The sentences of the page of two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flops_fit_core import numbers
from flops_fit_core.fitting import Comparison
from flops_fit_core.report.overlay.answers import AnswerPair
from flops_fit_core.report.overlay.content import OverlayContent
from flops_fit_core.report.overlay.conventions import Quantity, list_assumed

QUANTITY_NAMES: Mapping[Quantity, str] = {"params": "N_opt", "tokens": "D_opt", "loss": "the loss"}


def verdict(content: OverlayContent) -> str:
    """Whether the two can be compared, in a sentence."""
    if content.refused:
        rest = "Everything else can be." if len(content.refused) < len(QUANTITY_NAMES) else ""
        names = _join([QUANTITY_NAMES[name] for name in content.refused])
        text = f"Only in part. Not compared: {names}. {rest}".strip()
        return (
            text if rest else "No: C, the loss or the counts differ, so no number of A is compared with one of B."
        )
    if content.allowed:
        return "Only with care: they differ, and are compared because differences are allowed."
    if list_assumed(content.conventions):
        return "Yes, under assumptions: no recorded convention differs, but some are not recorded."
    return "Yes: A and B count N, C and D alike and have the same data and the same held-out loss."


def assumed(content: OverlayContent) -> str:
    """The conventions that are assumed to be equal; empty if all are recorded."""
    names = list_assumed(content.conventions)
    return _join(names) if names else ""


def differences(content: OverlayContent, pair: AnswerPair) -> str:
    """Whether the intervals show a difference of N_opt, D_opt and the loss; empty without intervals."""
    shown: list[str] = []
    without: list[str] = []
    for quantity, item in pair.differences.items():
        if item.low is None or item.high is None:
            continue
        name = QUANTITY_NAMES[quantity]
        neutral = 0 if quantity == "loss" else 1
        if item.low <= neutral <= item.high:
            without.append(name)
        elif quantity == "loss":
            shown.insert(0, f"The loss of B is {'lower' if item.high < 0 else 'higher'} by {abs(item.value):.4f}.")
        else:
            size = "larger" if item.low > 1 else "smaller"
            shown.append(f"{name} of B is {size}: {numbers.ratio(item.value)} times that of A.")
    if without:
        shown.append(f"The intervals show no difference in {_join(without)}.")
    if not shown:
        return ""
    return _join_assumption(" ".join(shown), list_assumed(content.conventions))


def _join(names: Sequence[str]) -> str:
    """``N_opt``, ``N_opt and the loss``, ``N_opt, D_opt and the loss``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def outside(pair: AnswerPair) -> str:
    """The sides whose N_opt lies outside their trained sizes; empty if none does."""
    texts = [
        f"N_opt of {letter} lies {optimum.outside} its trained sizes."
        for letter, optimum in (("A", pair.first), ("B", pair.second))
        if optimum.outside is not None
    ]
    return " ".join(texts)


def interval_note(content: OverlayContent) -> str:
    """The level of the intervals, and how those of differences are computed."""
    first, second = content.first.fit, content.second.fit
    assert first is not None
    assert second is not None
    if first.level != second.level:
        return (
            f"Small numbers are intervals: {first.level:.0%} for A, {second.level:.0%} for B. Differences have no "
            "interval, because the levels differ."
        )
    if not any(item.low is not None for item in content.pairs[-1].differences.values()):
        return f"Small numbers are {first.level:.0%} intervals. Differences have none if A or B has none."
    paired = "; the gain below uses the pairs" if content.gain.comparison is not None else ""
    return (
        f"Small numbers are {first.level:.0%} intervals. Those of differences combine the intervals of A and B as "
        "independent (Zou and Donner 2008). If A and B share seeds, errors cancel and these intervals are too "
        f"wide{paired}."
    )


def gain(content: OverlayContent, comparison: Comparison) -> str:
    """The gain at the largest budget, with the assumptions on which it rests."""
    item = comparison.gains[-1]
    flops = numbers.scientific(item.flops)
    if item.gain.low is None or item.gain.high is None:
        return f"The runs do not determine the gain at C = {flops}."
    text = (
        f"For the loss that B reaches with C = {flops}, A needs {item.gain.value:.3g} times the compute "
        f"({item.gain.low:.3g} to {item.gain.high:.3g}, {comparison.level:.0%} interval)."
    )
    return _join_assumption(text, list_assumed(content.conventions, "loss"))


def _join_assumption(text: str, assumed: Sequence[str]) -> str:
    """A sentence that names the assumptions first; a name such as N_opt keeps its capital."""
    if not assumed:
        return text
    start = text[0] if text[1:2] == "_" else text[0].lower()
    return f"Under the assumptions above, {start}{text[1:]}"


_FIGURES: tuple[tuple[str, str, str, tuple[Quantity, ...]], ...] = (
    (
        "profiles",
        "IsoFLOP profiles",
        "Held-out loss of every run against N. Circles are runs of A, diamonds of B. A star marks a minimum.",
        ("params", "loss"),
    ),
    (
        "params",
        "Optimal parameters N_opt(C)",
        "Dashed beyond the runs of each side. The bands are the intervals of the laws.",
        ("params",),
    ),
    ("tokens", "Optimal {unit} D_opt(C)", "The same laws, for the training data.", ("tokens",)),
    (
        "frontier",
        "Loss at the optimum",
        "The lowest held-out loss that each budget reaches. Circles are runs of A, diamonds of B.",
        ("loss",),
    ),
    ("ratio", "{unit} per parameter", "D over N at the optimum.", ("params", "tokens")),
    (
        "gain",
        "Gain of B over A",
        "A needs the gain times C for the loss that B reaches with C. Above the dotted line, B saves compute.",
        ("loss",),
    ),
)


def figures(content: OverlayContent) -> list[tuple[str, str, str]]:
    """Name, title and caption of each figure that may be drawn."""
    unit = content.first.unit if content.first.unit == content.second.unit else "samples"
    return [
        (name, title.format(unit=unit.capitalize() if title.startswith("{") else unit), caption)
        for name, title, caption, quantities in _FIGURES
        if not any(quantity in content.refused for quantity in quantities)
        and (name != "gain" or content.gain.comparison is not None)
    ]


def not_drawn(content: OverlayContent) -> list[str]:
    """Why a figure is not drawn, a sentence per figure."""
    sentences = []
    for name, title, _, quantities in _FIGURES:
        reasons = [content.refused[quantity] for quantity in quantities if quantity in content.refused]
        if reasons and name != "gain":
            unit = content.first.unit
            sentences.append(
                f"{title.format(unit=unit)}: not drawn, because {' and '.join(dict.fromkeys(reasons))}."
            )
    return sentences
