"""Check, for any law, whether the trained sizes bracket the optimum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.errors import FlopsFitError
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.diagnostics import describe_edge, explain_unusable, factor_beyond, outside_sizes
from flops_fit_core.fitting.fitters.profiles import (
    Profile,
    fit_profile,
    group_by_budget,
    move_to_budgets,
    profile_record,
)
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.records import Diagnostic, LawFit, Observation, Optimum, ProfileMinimum

MAX_NAMED_BUDGETS = 4
"""A message names at most this many budgets."""
SAME_FLOPS = 0.02
"""Runs whose C differ by less than this have the same budget."""
MIN_PROFILE_SIZES = 4
"""The fewest sizes of an IsoFLOP profile."""


def check_grid(fit: LawFit, fitter: Fitter, observations: Sequence[Observation]) -> LawFit:
    """Add the range of trained sizes, and warnings for optima outside it.

    Sets ``params_range`` if the fitter did not. Adds one diagnostic per budget with its lowest loss at an edge of
    its sizes, and one for all budgets with N_opt outside the trained sizes.
    """
    if not observations:
        return fit
    if fit.params_range is None:
        sizes = [observation.params for observation in observations]
        fit = fit.model_copy(update={"params_range": (min(sizes), max(sizes))})
    warnings = [] if fit.minima else grid_edges(observations)
    warnings += _check_optima(fit, fitter, observations)
    return fit.model_copy(update={"diagnostics": (*fit.diagnostics, *warnings)})


def grid_edges(observations: Sequence[Observation]) -> list[Diagnostic]:
    """One warning per budget with its lowest loss at the smallest or largest size.

    Runs without a nominal budget form a budget if four or more sizes have the same C to within 2%.
    """
    profiles, runs = _profiles(observations)
    budgets = [profile for profile in profiles if runs is not None and _has_one_budget(profile, runs)]
    return [Diagnostic(code="minimum-at-edge", message=text) for text in map(describe_edge, budgets) if text]


def has_profiles(observations: Sequence[Observation]) -> bool:
    """Whether two or more budgets have four or more sizes each, and hold most of the runs.

    Runs without a nominal budget form one if their C are equal to within 2%.
    """
    groups: dict[float, list[float]] = {}
    for run in observations:
        if run.budget is None:
            budget = next((c for c in groups if abs(run.flops / c - 1) < SAME_FLOPS), run.flops)
        else:
            budget = run.budget
        groups.setdefault(budget, []).append(run.params)
    profiles = [sizes for sizes in groups.values() if len(set(sizes)) >= MIN_PROFILE_SIZES]
    return len(profiles) >= 2 and sum(map(len, profiles)) > len(observations) / 2


def _has_one_budget(profile: Profile, runs: Runs) -> bool:
    if np.isfinite(runs.budget[profile.rows]).all():
        return True
    is_same_flops = float(np.ptp(np.log(runs.flops[profile.rows]))) < np.log(1.02)
    return is_same_flops and len(np.unique(np.round(profile.u, 9))) >= 4


def profile_minima(observations: Sequence[Observation]) -> tuple[list[ProfileMinimum], list[Diagnostic]]:
    """The minimum of each budget's parabola, and a diagnostic per unusable minimum. One budget suffices."""
    profiles, runs = _profiles(observations)
    if runs is None:
        return [], []
    flops_per_token = FlopsPerToken.of(runs)
    minima = []
    for profile in profiles:
        ln_tokens = float(np.log(profile.budget) - flops_per_token(np.array([profile.ln_params]))[0])
        minima.append(profile_record(profile, ln_tokens, "log-loss"))
    unused = [Diagnostic(code=code, message=text) for code, text in map(explain_unusable, profiles) if code]
    return minima, unused


@convert_numerical_errors
def _profiles(observations: Sequence[Observation]) -> tuple[list[Profile], Runs | None]:
    if not observations or min(observation.loss for observation in observations) <= 0:
        return [], None
    runs = Runs.of(observations)
    groups = group_by_budget(runs)
    moved = move_to_budgets(runs, groups)
    return [fit_profile(group, np.log(runs.params), moved) for group in groups], runs


def flag_outside(fit: LawFit, optimum: Optimum) -> Optimum:
    """Mark the optimum if its C lies beyond the fitted budgets, or its N outside the sizes of the fitted runs."""
    if optimum.beyond is None:
        optimum = optimum.model_copy(update={"beyond": factor_beyond(optimum.flops, fit.flops_range)})
    if optimum.outside is not None or fit.params_range is None:
        return optimum
    side, message = outside_sizes(optimum.params.value, fit.params_range)
    if side is None:
        return optimum
    return optimum.model_copy(update={"outside": side, "notes": (*optimum.notes, message)})


def _check_optima(fit: LawFit, fitter: Fitter, observations: Sequence[Observation]) -> list[Diagnostic]:
    assert fit.params_range is not None
    budgets = sorted({run.budget for run in observations if run.budget is not None}) or list(fit.flops_range)
    outside: dict[str, list[tuple[float, float]]] = {}
    for flops in budgets:
        try:
            params = fitter.optimum(fit, flops).params.value
        except FlopsFitError:  # a law without an optimum raises this when an optimum is requested
            return []
        side, _ = outside_sizes(params, fit.params_range)
        if side is not None:
            outside.setdefault(side, []).append((flops, params))
    low, high = fit.params_range
    return [
        Diagnostic(
            code="outside-sizes",
            message=f"N_opt lies {side} the trained sizes, N = {numbers.span(low, high)}, at "
            + ", ".join(
                f"C = {numbers.scientific(flops)} (N_opt = {numbers.count(params)})"
                for flops, params in optima[:MAX_NAMED_BUDGETS]
            )
            + (f" and {len(optima) - MAX_NAMED_BUDGETS} more budgets" if len(optima) > MAX_NAMED_BUDGETS else "")
            + f": no run supports these optima; add sizes {side} N = "
            f"{numbers.count(low if side == 'below' else high)}",
        )
        for side, optima in outside.items()
    ]
