"""Diagnostics of a fit: a code, and a sentence that names the problem and the remedy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.fitters.profiles import Profile
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.records import Diagnostic, RunResult


def note(code: str, message: str) -> Diagnostic:
    return Diagnostic(code=code, message=message, severity="note")


def no_interval(reason: str) -> Diagnostic:
    return Diagnostic(code="no-interval", message=f"no intervals: {reason}")


def count_runs(count: int) -> str:
    """``1 run``, ``2 runs``."""
    return "1 run" if count == 1 else f"{count} runs"


def report_unused_errors(runs: Runs) -> list[Diagnostic]:
    """Report standard errors that a fitter does not use."""
    if not runs.loss_se.any():
        return []
    return [
        note(
            "loss-errors",
            "standard errors of the losses are not used, and all runs have equal weight: fit with fitter average, "
            "or one law (--law NAME), to use them",
        )
    ]


def check_versions(results: Sequence[RunResult]) -> list[Diagnostic]:
    """Report packages that completed runs were trained with in several versions."""
    versions_by_name: dict[str, set[str]] = {}
    for result in results:
        for name, version in result.versions.items() if result.status == "completed" else ():
            versions_by_name.setdefault(name, set()).add(version)
    mixed = [
        f"{name} {' and '.join(sorted(versions))}"
        for name, versions in sorted(versions_by_name.items())
        if len(versions) > 1
    ]
    if not mixed:
        return []
    return [
        note(
            "mixed-versions",
            f"runs were trained with {', '.join(mixed)}; their losses may differ for that reason",
        )
    ]


def check_profiles(profiles: Sequence[Profile], used: Collection[float]) -> list[Diagnostic]:
    """Report budgets without an interior minimum, or with too few sizes to check the curve.

    The law uses the budgets ``used``.
    """
    unused = [profile for profile in profiles if profile.budget not in used]
    diagnostics = [Diagnostic(code=code, message=text) for code, text in map(explain_unusable, unused) if code]
    diagnostics += [
        note("no-own-minimum", _explain_used(profile))
        for profile in profiles
        if profile.budget in used and profile.verdict != "interior"
    ]
    sparse = [
        profile
        for profile in profiles
        if profile.verdict == "interior" and profile.dof < 2 and profile.shape != "akima"
    ]
    if sparse:
        diagnostics.append(
            Diagnostic(
                code="few-sizes",
                message=f"{_budgets(sparse)}: too few runs to estimate the error of the curve; "
                "train 5 or more sizes per budget",
            )
        )
    return diagnostics


def explain_unusable(profile: Profile) -> tuple[str, str]:
    """Code and message for a profile without a usable minimum; two empty strings otherwise."""
    label = f"budget {numbers.scientific(profile.budget)}"
    smallest, largest = (numbers.count(size) for size in _size_range(profile))
    if profile.verdict == "below":
        return "minimum-at-edge", (
            f"{label}: the loss still falls towards the smallest size, N = {smallest}, so the minimum lies below "
            f"the grid and the law does not use this budget; add sizes below N = {smallest}, "
            f"{sizes_to_add(profile)}"
        )
    if profile.verdict == "above":
        return "minimum-at-edge", (
            f"{label}: the loss still falls towards the largest size, N = {largest}, so the minimum lies above "
            f"the grid and the law does not use this budget; add sizes above N = {largest}, "
            f"{sizes_to_add(profile)}"
        )
    if profile.verdict == "not convex":
        return "not-convex", (
            f"{label}: the profile bends downwards, so it has no minimum and the law does not use this budget; "
            f"look for a mistuned run, or widen the grid beyond N = {smallest} to {largest}"
        )
    if profile.verdict == "too few sizes":
        return "too-few-sizes", (
            f"{label}: too few sizes for a {profile.shape}, so the law does not use this budget; "
            "train at least 5 sizes per budget"
        )
    return "", ""


def _explain_used(profile: Profile) -> str:
    shape = {
        "below": "its lowest loss is at its smallest size",
        "above": "its lowest loss is at its largest size",
    }.get(profile.verdict, "its own profile has no minimum")
    return (
        f"budget {numbers.scientific(profile.budget)}: {shape}, but the profiles of all budgets "
        "together have their minimum "
        "inside its grid, so the law uses it"
    )


def describe_edge(profile: Profile) -> str:
    """Message for a budget with its lowest loss at an edge, for laws that still use it; otherwise empty."""
    if profile.verdict not in ("below", "above"):
        return ""
    smallest, largest = _size_range(profile)
    end, size = ("smallest", smallest) if profile.verdict == "below" else ("largest", largest)
    return (
        f"budget {numbers.scientific(profile.budget)}: the loss still falls towards the {end} size, "
        f"N = {numbers.count(size)}, so its "
        f"optimum lies {profile.verdict} the trained sizes; add sizes {profile.verdict} N = "
        f"{numbers.count(size)}, "
        f"{sizes_to_add(profile)}"
    )


def sizes_to_add(profile: Profile) -> str:
    """Suggest the next two sizes beyond the edge, at the median spacing of the trained sizes."""
    sizes = np.unique(np.round(profile.u, 9)) + profile.centre
    step = float(np.median(np.diff(sizes)))
    edge = sizes[0] if profile.verdict == "below" else sizes[-1]
    sign = -1 if profile.verdict == "below" else 1
    first, second = (float(np.exp(edge + sign * count * step)) for count in (1, 2))
    return f"such as N = {numbers.count(first)} and {numbers.count(second)}"


def outside_sizes(params: float, sizes: tuple[float, float]) -> tuple[Literal["below", "above"] | None, str]:
    """The side of the trained sizes on which N lies, and a message; None and an empty string if inside."""
    low, high = sizes
    side: Literal["below", "above"]
    if params < low / 1.01:
        side = "below"
    elif params > high * 1.01:
        side = "above"
    else:
        return None, ""
    return side, f"N_opt lies {side} the trained sizes, N = {numbers.span(low, high)}"


def check_runs(runs: Runs, flops_per_token: FlopsPerToken) -> list[Diagnostic]:
    """Report runs that differ in more than N and D."""
    diagnostics = []
    by_seed: dict[int, set[float]] = {}
    for seed, params in zip(runs.seeds, runs.params, strict=True):
        if seed is not None:
            by_seed.setdefault(seed, set()).add(float(params))
    sizes = set(runs.params.tolist())
    if len(by_seed) > 1 and any(sizes_of_seed != sizes for sizes_of_seed in by_seed.values()):
        seeds = ", ".join(str(seed) for seed in sorted(by_seed))
        diagnostics.append(
            Diagnostic(
                code="mixed-seeds",
                message=f"seeds {seeds} do not cover the same sizes, so seed differences look like size "
                "differences; train every size with every seed",
            )
        )
    diagnostics += [Diagnostic(code="flops-per-token", message=message) for message in flops_per_token.warnings]
    return diagnostics


SAME_BUDGET = 1.01
"""Budgets within this factor are equal."""


def factor_beyond(flops: float, flops_range: tuple[float, float]) -> float | None:
    """C over the largest fitted C; None for a C that does not lie beyond it."""
    factor = flops / flops_range[1]
    return factor if factor > SAME_BUDGET else None


def extrapolation(flops: float, flops_range: tuple[float, float]) -> tuple[str, ...]:
    """Notes for a target C outside the fitted budgets."""
    low, high = flops_range
    shown = numbers.scientific(flops)
    if factor_beyond(flops, flops_range) is not None:
        times, largest = _count_times(flops / high), numbers.scientific(high)
        return (f"extrapolated: C = {shown} is {times} times the largest fitted budget ({largest})",)
    if flops < low / SAME_BUDGET:
        times, smallest = _count_times(low / flops), numbers.scientific(low)
        return (f"extrapolated: C = {shown} is 1/{times} of the smallest fitted budget ({smallest})",)
    return ()


def _count_times(factor: float) -> str:
    """``2.5``, ``2,500``, ``3e7``."""
    return f"{float(f'{factor:.2g}'):,g}" if factor < 1e6 else numbers.scientific(factor, 2)


def _size_range(profile: Profile) -> tuple[float, float]:
    return float(np.exp(profile.centre + profile.u.min())), float(np.exp(profile.centre + profile.u.max()))


def _budgets(profiles: Iterable[Profile]) -> str:
    budgets = [numbers.scientific(profile.budget) for profile in profiles]
    return f"budget{'s' if len(budgets) > 1 else ''} {', '.join(budgets)}"
