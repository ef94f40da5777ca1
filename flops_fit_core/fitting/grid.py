"""Whether the trained sizes hold the optimum: edges of the grid and optima outside it, for any law."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_core.errors import FlopsFitError
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.diagnostics import about_edge, outside_sizes, unusable
from flops_fit_core.fitting.fitters.profiles import (
    Profile,
    fit_profile,
    group_by_budget,
    move_to_budgets,
    profile_record,
)
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.numerical_errors import guarded
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.records import Diagnostic, LawFit, Observation, Optimum, ProfileMinimum

BUDGETS = 4
"""Budgets that a message names."""


def check_grid(fit: LawFit, fitter: Fitter, observations: Sequence[Observation]) -> LawFit:
    """The fit with its trained sizes, and with warnings where its optima are not among them.

    Adds ``params_range`` where the fitter gave none, a diagnostic for each budget whose lowest loss is at an edge
    of its sizes, and one for the budgets whose N_opt lies outside all sizes.
    """
    if not observations:
        return fit
    if fit.params_range is None:
        sizes = [observation.params for observation in observations]
        fit = fit.model_copy(update={"params_range": (min(sizes), max(sizes))})
    warnings = [] if fit.minima else grid_edges(observations)
    warnings += _optima_outside(fit, fitter, observations)
    return fit.model_copy(update={"diagnostics": (*fit.diagnostics, *warnings)})


def grid_edges(observations: Sequence[Observation]) -> list[Diagnostic]:
    """One warning for each budget whose lowest loss is that of its smallest or largest size.

    Runs without a nominal budget are one where four or more sizes have the same C to within 2%.
    """
    profiles, runs = _profiles(observations)
    sure = [profile for profile in profiles if runs is not None and _is_budget(profile, runs)]
    return [Diagnostic(code="minimum-at-edge", message=text) for text in map(about_edge, sure) if text]


def _is_budget(profile: Profile, runs: Runs) -> bool:
    if np.isfinite(runs.budget[profile.rows]).all():
        return True
    same = float(np.ptp(np.log(runs.flops[profile.rows]))) < np.log(1.02)
    return same and len(np.unique(np.round(profile.u, 9))) >= 4


def profile_minima(observations: Sequence[Observation]) -> tuple[list[ProfileMinimum], list[Diagnostic]]:
    """The minimum of each budget's parabola, and why one cannot be used. No law is needed: one budget will do."""
    profiles, runs = _profiles(observations)
    if runs is None:
        return [], []
    flops_per_token = FlopsPerToken.of(runs)
    minima = []
    for profile in profiles:
        ln_tokens = float(np.log(profile.budget) - flops_per_token(np.array([profile.ln_params]))[0])
        minima.append(profile_record(profile, ln_tokens, "log-loss"))
    unused = [Diagnostic(code=code, message=text) for code, text in map(unusable, profiles) if code]
    return minima, unused


@guarded
def _profiles(observations: Sequence[Observation]) -> tuple[list[Profile], Runs | None]:
    if not observations:
        return [], None
    runs = Runs.of(observations)
    groups = group_by_budget(runs)
    moved = move_to_budgets(runs, groups)
    return [fit_profile(group, np.log(runs.params), moved) for group in groups], runs


def flag_outside(fit: LawFit, optimum: Optimum) -> Optimum:
    """The optimum, marked where its N lies outside the sizes that the fit was made from."""
    if optimum.outside is not None or fit.params_range is None:
        return optimum
    side, message = outside_sizes(optimum.params.value, fit.params_range)
    if side is None:
        return optimum
    return optimum.model_copy(update={"outside": side, "notes": (*optimum.notes, message)})


def _optima_outside(fit: LawFit, fitter: Fitter, observations: Sequence[Observation]) -> list[Diagnostic]:
    assert fit.params_range is not None
    budgets = sorted({run.budget for run in observations if run.budget is not None}) or list(fit.flops_range)
    outside: dict[str, list[tuple[float, float]]] = {}
    for flops in budgets:
        try:
            params = fitter.optimum(fit, flops).params.value
        except FlopsFitError:  # a law without an optimum says so where one is asked for
            return []
        side, _ = outside_sizes(params, fit.params_range)
        if side is not None:
            outside.setdefault(side, []).append((flops, params))
    low, high = fit.params_range
    return [
        Diagnostic(
            code="outside-sizes",
            message=f"N_opt lies {side} the trained sizes, N = {low:.3g} to {high:.3g}, at "
            + ", ".join(f"C = {flops:.3g} (N_opt = {params:.3g})" for flops, params in optima[:BUDGETS])
            + (f" and {len(optima) - BUDGETS} more budgets" if len(optima) > BUDGETS else "")
            + f": no run supports these optima; add sizes {side} N = {low if side == 'below' else high:.3g}",
        )
        for side, optima in outside.items()
    ]
