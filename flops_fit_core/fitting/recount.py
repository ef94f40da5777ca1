"""The same runs under another count of FLOPs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

from flops_fit_core.records import Observation

Count = Callable[[Observation], tuple[float, float]]
"""N and FLOPs a token of a run's model."""


def six_n(one: Observation) -> tuple[float, float]:
    """C = 6 N D with the N that there is."""
    return one.params, 6 * one.params


def recounted(observations: Iterable[Observation], count: Count = six_n) -> list[Observation]:
    """The observations with N and C by another count, and each IsoFLOP group's budget moved to its mean (in ln C).

    Under another count, the runs of one group no longer have one C: a fit has to move each loss to the group's
    budget along the slope of the loss in C. Where the counts differ by less than a factor of two, that is a small
    step.
    """
    groups: dict[float | None, list[Observation]] = defaultdict(list)
    for one in observations:
        groups[one.budget].append(one)
    out: list[Observation] = []
    for budget, members in groups.items():
        counts = [count(one) for one in members]
        flops = [each * one.tokens for one, (_, each) in zip(members, counts, strict=True)]
        mean = math.exp(math.fsum(map(math.log, flops)) / len(flops)) if budget is not None else None
        out += [
            one.model_copy(update={"params": params, "flops": total, "budget": mean})
            for one, (params, _), total in zip(members, counts, flops, strict=True)
        ]
    return out
