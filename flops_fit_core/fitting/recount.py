"""Observations with another count of FLOPs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

from flops_fit_core.records import Observation

Count = Callable[[Observation], tuple[float, float]]
"""Returns N and training FLOPs per token of a run's model."""


def count_six_n(run: Observation) -> tuple[float, float]:
    """C = 6 N D with the N of the observation."""
    return run.params, 6 * run.params


def recounted(observations: Iterable[Observation], count: Count = count_six_n) -> list[Observation]:
    """Observations with N and C by another count; each IsoFLOP group's budget becomes its geometric mean C.

    Under another count, the runs of a group no longer have the same C. A fit must move each loss to the group's
    budget along the slope of the loss in C. This correction is small if the counts differ by less than a factor of
    two.
    """
    groups: dict[float | None, list[Observation]] = defaultdict(list)
    for run in observations:
        groups[run.budget].append(run)
    recounted_runs: list[Observation] = []
    for budget, group in groups.items():
        counts = [count(run) for run in group]
        flops = [per_token * run.tokens for run, (_, per_token) in zip(group, counts, strict=True)]
        mean = math.exp(math.fsum(map(math.log, flops)) / len(flops)) if budget is not None else None
        recounted_runs += [
            run.model_copy(update={"params": params, "flops": total, "budget": mean})
            for run, (params, _), total in zip(group, counts, flops, strict=True)
        ]
    return recounted_runs
