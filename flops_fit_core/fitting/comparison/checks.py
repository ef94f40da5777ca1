"""Checks that two recipes can be compared, and their common budgets."""

from __future__ import annotations

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.errors import FitError
from flops_fit_core.fitting.comparison.design import Design

_SAME_FACTOR, _SMALL_SPREAD = 0.03, 0.1
"""Distance of the median ln ratio of losses from ln(1 / ln 2), and range of the ratios, that reveal bits."""


def common_range(design: Design, names: tuple[str, str]) -> tuple[float, float]:
    """Smallest and largest C that both recipes cover. Raises FitError if there is none."""
    flops = [design.runs.flops[design.second == recipe] for recipe in (0, 1)]
    low, high = max(values.min() for values in flops), min(values.max() for values in flops)
    if low > high * 1.01:
        ranges = [
            f"{name}: {numbers.span(float(values.min()), float(values.max()), numbers.scientific)}"
            for name, values in zip(names, flops, strict=True)
        ]
        raise FitError(
            f"the budgets of the recipes do not overlap ({'; '.join(ranges)} FLOPs): train both at one C or more"
        )
    return float(min(low, high)), float(max(low, high))


def largest_common_budget(design: Design) -> float:
    """The largest nominal budget of both recipes; without one, the smaller of the two largest C."""
    budgets = [design.runs.budget[design.second == recipe] for recipe in (0, 1)]
    shared = set(budgets[0][np.isfinite(budgets[0])]) & set(budgets[1][np.isfinite(budgets[1])])
    return (
        float(max(shared)) if shared else min(float(design.runs.flops[design.second == k].max()) for k in (0, 1))
    )


def refuse_different_units(design: Design, names: tuple[str, str]) -> None:
    """Raises FitError if the losses of common cells differ by the constant factor of bits to nats."""
    if problem := find_unit_problem(design, names):
        raise FitError(f"{problem}: give both in nats")


def find_unit_problem(design: Design, names: tuple[str, str]) -> str:
    """Whose losses seem to be in bits, by the losses of common cells; empty if none seem to be."""
    ratios = []
    for cell in np.unique(design.cells):
        parts = [design.ln_loss[(design.cells == cell) & (design.second == recipe)] for recipe in (0, 1)]
        if len(parts[0]) and len(parts[1]):
            ratios.append(parts[1].mean() - parts[0].mean())
    if len(ratios) < 3:
        return ""
    distance = np.abs(np.median(ratios)) + np.log(np.log(2))
    if not (abs(distance) < _SAME_FACTOR and np.ptp(ratios) < _SMALL_SPREAD):
        return ""
    bits, nats = names if np.median(ratios) < 0 else names[::-1]
    return f"at equal N and D, the losses of {bits} are 1.44 times those of {nats}, as bits are to nats"
