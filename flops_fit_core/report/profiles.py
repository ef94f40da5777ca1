"""IsoFLOP profiles for plots: fitted profiles, or slices of a fitted surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flops_fit_core.errors import FitError
from flops_fit_core.fitting import Runs, profile_loss
from flops_fit_core.fitting.fitters.profiles import group_by_budget, move_to_budgets
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optimum_solver import OptimumSolver
from flops_fit_core.fitting.laws.surfaces import point_surface
from flops_fit_core.fitting.predict import without_draws
from flops_fit_core.records import LawFit, Observation, ProfileMinimum

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


@dataclass(frozen=True)
class ProfileResiduals:
    """Residuals of the runs of a budget about their profile."""

    budget: float
    params: Floats
    percent: Floats
    """100 (ln L - ln L of the profile)."""
    used: list[bool]
    """False for runs that the fit excluded."""


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


def profile_residuals(
    observations: Sequence[Observation], fit: LawFit, drawn: Sequence[DrawnProfile]
) -> list[ProfileResiduals]:
    """Residuals of the runs of each drawn profile; empty without a curve.

    A run is compared with a fitted surface at its own N and D. For fitted profiles, the loss of the run is moved
    to the nominal budget, as for the fit, and only runs within the sizes of the curve are compared.
    """
    minima = {minimum.budget: minimum for minimum in fit.minima}
    point_fit = without_draws(fit)
    moved = _losses_at_budgets(observations) if minima else {}
    residuals = []
    for budget, runs in group_by_profile(observations, drawn).items():
        profile = next((profile for profile in drawn if profile.budget == budget), None)
        if profile is None or not len(profile.params):
            continue
        if minima:
            low, high = profile.params[0] * (1 - 1e-9), profile.params[-1] * (1 + 1e-9)
            runs = [run for run in runs if low <= run.params <= high]
            loss = [moved[run.id] for run in runs]
            expected = profile_loss(minima[profile.budget], np.array([run.params for run in runs]))
        else:
            loss = [run.loss for run in runs]
            expected = surface_loss(point_fit, [run.params for run in runs], [run.tokens for run in runs])
        percent = 100 * (np.log(loss) - np.log(expected))
        used = [run.id not in fit.excluded for run in runs]
        residuals.append(ProfileResiduals(profile.budget, np.array([run.params for run in runs]), percent, used))
    return sorted(residuals, key=lambda item: item.budget)


def surface_loss(fit: LawFit, params: Sequence[float] | Floats, tokens: Sequence[float] | Floats) -> Floats:
    """The law's loss at each (N, D). Raises FitError for a law of the optimum only and for a law with inputs."""
    ln_params, ln_tokens = (np.log(np.asarray(values, dtype=float))[None] for values in (params, tokens))
    loss: Floats = np.real(point_surface(fit).loss(ln_params, ln_tokens))[0]
    return loss


def _losses_at_budgets(observations: Sequence[Observation]) -> dict[str, float]:
    """Loss of each run, moved to its nominal budget at constant N."""
    runs = Runs.of(observations)
    moved = np.exp(move_to_budgets(runs, group_by_budget(runs)))
    return {run.id: float(loss) for run, loss in zip(observations, moved, strict=True)}


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
    )


def _slice_surface(observations: Sequence[Observation], fit: LawFit) -> list[DrawnProfile]:
    point_fit = without_draws(fit)
    runs, flops_per_token = Runs.of(observations), FlopsPerToken.from_knots(fit.flops_per_token)
    drawn = []
    groups = [group for group in group_by_budget(runs) if len(np.unique(runs.params[group.rows])) >= 3]
    minima = OptimumSolver(point_fit).many([group.budget for group in groups], new_run=False)
    for group, minimum in zip(groups, minima, strict=True):
        sizes = runs.params[group.rows]
        ends = [*sizes, minimum.params.value]
        params = np.geomspace(min(ends), max(ends), POINTS)
        tokens = np.exp(np.log(group.budget) - flops_per_token(np.log(params)))
        loss = surface_loss(point_fit, params, tokens)
        drawn.append(DrawnProfile(group.budget, params, loss, lowest=(minimum.params.value, minimum.loss.value)))
    return drawn
