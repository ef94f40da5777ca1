"""The same runs under another count of FLOPs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from flops_fit_core.records import Observation


def recounted(observations: Iterable[Observation]) -> list[Observation]:
    """The observations with C = 6 N D, and each IsoFLOP group's budget moved to its mean (in ln C).

    Under 6 N D, the runs of one group no longer have one C: a fit has to move each loss to the group's budget
    along the slope of the loss in C. Where the counts differ by less than a factor of two, that is a small step.
    """
    groups: dict[float | None, list[Observation]] = defaultdict(list)
    for one in observations:
        groups[one.budget].append(one)
    out: list[Observation] = []
    for budget, members in groups.items():
        flops = [6 * one.params * one.tokens for one in members]
        mean = math.exp(math.fsum(map(math.log, flops)) / len(flops)) if budget is not None else None
        out += [
            one.model_copy(update={"flops": count, "budget": mean})
            for one, count in zip(members, flops, strict=True)
        ]
    return out
