"""IsoFLOP profiles for plots: fitted profiles, or slices of a fitted surface."""

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
from flops_fit_core.report.tables import describe_flag

POINTS = 120
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DrawnProfile:
    """Loss against N at a budget, and its lowest point."""

    budget: float
    params: Floats
    """N along the curve; empty without a curve."""
    loss: Floats
    """Nats, at ``params``."""
    lowest: tuple[float, float]
    """(N, L)."""
    at_edge: bool = False
    label: str = ""
    """Label next to a minimum that the law does not use."""


def build_profiles(observations: Sequence[Observation], fit: LawFit) -> list[DrawnProfile]:
    """The profiles of a fit, smallest budget first. A surface L(N, D) has one per budget of 3 or more sizes."""
    if fit.minima:
        return [_read_profile(minimum) for minimum in sorted(fit.minima, key=lambda minimum: minimum.budget)]
    try:
        return _slice_surface(observations, fit)
    except FitError:
        # The law of another plugin, which cannot be evaluated here.
        return []


def group_by_profile(
    observations: Sequence[Observation], drawn: Sequence[DrawnProfile]
) -> dict[float | None, list[Observation]]:
    """Runs by the budget of the nearest profile within a factor of 1.2; other runs under None."""
    groups: dict[float | None, list[Observation]] = {}
    for run in observations:
        flops = run.budget or run.flops
        nearest = min(
            (profile.budget for profile in drawn), key=lambda budget: abs(math.log(flops / budget)), default=None
        )
        is_close = nearest is not None and abs(math.log(flops / nearest)) < math.log(1.2)
        groups.setdefault(nearest if is_close else None, []).append(run)
    return groups


def _read_profile(minimum: ProfileMinimum) -> DrawnProfile:
    curve = minimum.curve
    # A profile with fewer than three sizes has no curve, only zeros or single points.
    has_curve = "u2" in curve or any(curve.get(name) for name in ("c1", "c2"))
    params = np.geomspace(curve["smallest"], curve["largest"], POINTS) if has_curve else np.empty(0)
    return DrawnProfile(
        budget=minimum.budget,
        params=params,
        loss=profile_loss(minimum, params) if has_curve else params,
        lowest=(minimum.params, minimum.loss),
        at_edge=minimum.at_edge,
        label=describe_flag(minimum).removeprefix("at the grid's "),
    )


def _slice_surface(observations: Sequence[Observation], fit: LawFit) -> list[DrawnProfile]:
    point_fit = fit.model_copy(update={"draws": {}})
    runs, flops_per_token = Runs.of(observations), FlopsPerToken.from_knots(fit.flops_per_token)
    drawn = []
    for group in group_by_budget(runs):
        sizes = runs.params[group.rows]
        if len(np.unique(sizes)) < 3:
            continue
        minimum = optimum(point_fit, group.budget)
        ends = [*sizes, minimum.params.value]
        params = np.geomspace(min(ends), max(ends), POINTS)
        tokens = np.exp(np.log(group.budget) - flops_per_token(np.log(params)))
        loss = [predict_loss(point_fit, float(n), float(d)).value for n, d in zip(params, tokens, strict=True)]
        drawn.append(
            DrawnProfile(group.budget, params, np.array(loss), lowest=(minimum.params.value, minimum.loss.value))
        )
    return drawn
