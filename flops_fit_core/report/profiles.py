"""IsoFLOP profiles as they are drawn: those that were fitted, or else the slices of a fitted surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flops_fit_core.errors import FitError
from flops_fit_core.fitting import Runs, optimum, predict_loss, profile_loss
from flops_fit_core.fitting.fitters.profiles import group_by_budget
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.records import LawFit, Observation, ProfileMinimum
from flops_fit_core.report.tables import flag

POINTS = 120
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DrawnProfile:
    """One budget's curve of loss against N, and its lowest point."""

    budget: float
    params: Floats
    """Where the curve is drawn, N; empty where there is no curve."""
    loss: Floats
    """Nats, at ``params``."""
    lowest: tuple[float, float]
    """(N, L)."""
    at_edge: bool = False
    label: str = ""
    """Beside a minimum that the law does not use."""


def profiles(observations: Sequence[Observation], fit: LawFit) -> list[DrawnProfile]:
    """The profiles of a fit, smallest budget first. A surface L(N, D) has one for each budget with three sizes."""
    if fit.minima:
        return [_fitted(minimum) for minimum in sorted(fit.minima, key=lambda one: one.budget)]
    try:
        return _slices(observations, fit)
    except FitError:
        # A law that another plugin fits, and that is none of the forms that can be evaluated here.
        return []


def by_profile(
    observations: Sequence[Observation], drawn: Sequence[DrawnProfile]
) -> dict[float | None, list[Observation]]:
    """Runs by the budget of the nearest profile within a factor of 1.2; None for those that have none."""
    groups: dict[float | None, list[Observation]] = {}
    for one in observations:
        flops = one.budget or one.flops
        near = min((it.budget for it in drawn), key=lambda budget: abs(math.log(flops / budget)), default=None)
        fits = near is not None and abs(math.log(flops / near)) < math.log(1.2)
        groups.setdefault(near if fits else None, []).append(one)
    return groups


def _fitted(minimum: ProfileMinimum) -> DrawnProfile:
    curve = minimum.curve
    # A profile of fewer than three sizes keeps no curve, only zeros or single points.
    drawable = "u2" in curve or any(curve.get(name) for name in ("c1", "c2"))
    params = np.geomspace(curve["smallest"], curve["largest"], POINTS) if drawable else np.empty(0)
    return DrawnProfile(
        budget=minimum.budget,
        params=params,
        loss=profile_loss(minimum, params) if drawable else params,
        lowest=(minimum.params, minimum.loss),
        at_edge=minimum.at_edge,
        label=flag(minimum).removeprefix("at the grid's "),
    )


def _slices(observations: Sequence[Observation], fit: LawFit) -> list[DrawnProfile]:
    bare = fit.model_copy(update={"draws": {}})
    runs, flops_per_token = Runs.of(observations), FlopsPerToken.from_knots(fit.flops_per_token)
    drawn = []
    for group in group_by_budget(runs):
        sizes = runs.params[group.rows]
        if len(np.unique(sizes)) < 3:
            continue
        best = optimum(bare, group.budget)
        ends = [*sizes, best.params.value]
        params = np.geomspace(min(ends), max(ends), POINTS)
        tokens = np.exp(np.log(group.budget) - flops_per_token(np.log(params)))
        loss = [predict_loss(bare, float(n), float(d)).value for n, d in zip(params, tokens, strict=True)]
        drawn.append(
            DrawnProfile(group.budget, params, np.array(loss), lowest=(best.params.value, best.loss.value))
        )
    return drawn
