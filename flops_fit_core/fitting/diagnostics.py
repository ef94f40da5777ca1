"""What a person should know about a fit, in plain words, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.fitters.profiles import Profile
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.records import Diagnostic, RunResult


def note(code: str, message: str) -> Diagnostic:
    return Diagnostic(code=code, message=message, severity="note")


def no_interval(reason: str) -> Diagnostic:
    return Diagnostic(code="no-interval", message=f"no intervals: {reason}")


def about_versions(results: Sequence[RunResult]) -> list[Diagnostic]:
    """Whether completed runs were trained with several versions of something."""
    seen: dict[str, set[str]] = {}
    for result in results:
        for name, version in result.versions.items() if result.status == "completed" else ():
            seen.setdefault(name, set()).add(version)
    mixed = [
        f"{name} {' and '.join(sorted(versions))}" for name, versions in sorted(seen.items()) if len(versions) > 1
    ]
    if not mixed:
        return []
    return [
        note(
            "mixed-versions",
            f"runs were trained with {', '.join(mixed)}: they differ by whatever changed between these",
        )
    ]


def about_profiles(profiles: Sequence[Profile]) -> list[Diagnostic]:
    """Budgets whose minimum cannot be used or is only just supported."""
    found = [Diagnostic(code=code, message=text) for code, text in map(unusable, profiles) if code]
    few = [one for one in profiles if one.verdict == "interior" and one.dof < 2 and one.shape != "akima"]
    if few:
        found.append(
            Diagnostic(
                code="few-sizes",
                message=f"{_budgets(few)}: a curve through so few runs says little about its own error; "
                "train 5 or more sizes a budget",
            )
        )
    return found


def unusable(profile: Profile) -> tuple[str, str]:
    """Code and sentence where a profile gives no minimum; two empty strings where it does."""
    where = f"budget {profile.budget:.3g}"
    smallest, largest = (f"{size:.3g}" for size in _ends(profile))
    if profile.verdict == "below":
        return "minimum-at-edge", (
            f"{where}: the loss still falls towards the smallest size, N = {smallest}, so the minimum lies below "
            f"the grid and the law does not use this budget; add sizes below N = {smallest}, "
            f"{sizes_to_add(profile)}"
        )
    if profile.verdict == "above":
        return "minimum-at-edge", (
            f"{where}: the loss still falls towards the largest size, N = {largest}, so the minimum lies above "
            f"the grid and the law does not use this budget; add sizes above N = {largest}, "
            f"{sizes_to_add(profile)}"
        )
    if profile.verdict == "not convex":
        return "not-convex", (
            f"{where}: the profile bends downwards, so it has no minimum and the law does not use this budget; "
            f"look for a mistuned run, or widen the grid beyond N = {smallest} to {largest}"
        )
    if profile.verdict == "too few sizes":
        return "too-few-sizes", (
            f"{where}: too few sizes for a {profile.shape}, so the law does not use this budget; "
            "train at least 5 sizes a budget"
        )
    return "", ""


def about_edge(profile: Profile) -> str:
    """At which edge of the sizes the loss is lowest, for a law that uses the budget all the same; or empty."""
    if profile.verdict not in ("below", "above"):
        return ""
    smallest, largest = _ends(profile)
    end, size = ("smallest", smallest) if profile.verdict == "below" else ("largest", largest)
    return (
        f"budget {profile.budget:.3g}: the loss still falls towards the {end} size, N = {size:.3g}, so its "
        f"optimum lies {profile.verdict} the trained sizes; add sizes {profile.verdict} N = {size:.3g}, "
        f"{sizes_to_add(profile)}"
    )


def sizes_to_add(profile: Profile) -> str:
    """The next two sizes beyond the edge at which the minimum lies, as far apart as the sizes are."""
    sizes = np.unique(np.round(profile.u, 9)) + profile.centre
    step = float(np.median(np.diff(sizes)))
    edge = sizes[0] if profile.verdict == "below" else sizes[-1]
    sign = -1 if profile.verdict == "below" else 1
    first, second = (float(np.exp(edge + sign * count * step)) for count in (1, 2))
    return f"such as N = {first:.3g} and {second:.3g}"


def outside_sizes(params: float, sizes: tuple[float, float]) -> tuple[Literal["below", "above"] | None, str]:
    """On which side of the trained sizes N lies, and a sentence; None and an empty string inside them."""
    low, high = sizes
    side: Literal["below", "above"]
    if params < low / 1.01:
        side = "below"
    elif params > high * 1.01:
        side = "above"
    else:
        return None, ""
    return side, f"N_opt = {params:.3g} lies {side} the trained sizes, N = {low:.3g} to {high:.3g}"


def about_runs(runs: Runs, flops_per_token: FlopsPerToken) -> list[Diagnostic]:
    """Runs that differ in more than N and D."""
    found = []
    by_seed: dict[int, set[float]] = {}
    for seed, params in zip(runs.seeds, runs.params, strict=True):
        if seed is not None:
            by_seed.setdefault(seed, set()).add(float(params))
    sizes = set(runs.params.tolist())
    if len(by_seed) > 1 and any(one != sizes for one in by_seed.values()):
        seeds = ", ".join(str(seed) for seed in sorted(by_seed))
        found.append(
            Diagnostic(
                code="mixed-seeds",
                message=f"seeds {seeds} do not cover the same sizes, so differences between seeds look like "
                "differences between sizes; train every size with every seed",
            )
        )
    found += [Diagnostic(code="flops-per-token", message=message) for message in flops_per_token.warnings]
    return found


def extrapolation(flops: float, flops_range: tuple[float, float]) -> tuple[str, ...]:
    """How far a target lies beyond the fitted budgets, as notes."""
    low, high = flops_range
    if flops > high * 1.01:
        return (
            f"extrapolated: C = {flops:.3g} is {flops / high:.3g} times the largest fitted budget ({high:.3g})",
        )
    if flops < low / 1.01:
        return (f"extrapolated: C = {flops:.3g} is 1/{low / flops:.3g} of the smallest fitted budget ({low:.3g})",)
    return ()


def _ends(profile: Profile) -> tuple[float, float]:
    return float(np.exp(profile.centre + profile.u.min())), float(np.exp(profile.centre + profile.u.max()))


def _budgets(profiles: Iterable[Profile]) -> str:
    budgets = [f"{one.budget:.3g}" for one in profiles]
    return f"budget{'s' if len(budgets) > 1 else ''} {', '.join(budgets)}"
