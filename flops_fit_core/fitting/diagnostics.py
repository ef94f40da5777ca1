"""What a person should know about a fit, in plain words, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from flops_fit_core.fitting.constraint import FlopsPerToken
from flops_fit_core.fitting.data import Bools, Floats, Runs
from flops_fit_core.fitting.powerlaw import fit_line
from flops_fit_core.fitting.profiles import Profile
from flops_fit_core.fitting.surface import SurfaceFit
from flops_fit_core.fitting.units import looks_like_bits, name_rows
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


def about_surface(
    fit: SurfaceFit, used: Runs, runs: Runs, kept: Bools, residuals: Floats, constraint: FlopsPerToken
) -> list[Diagnostic]:
    """What Approach 3 should say of itself. ``kept`` marks the ``used`` among the ``runs``, of which all have
    ``residuals``."""
    found = []
    if bits := [runs.ids[row] for row in np.flatnonzero(~kept) if looks_like_bits(float(residuals[row]))]:
        found.append(
            Diagnostic(
                code="bits",
                message=f"{name_rows(bits)}: off by a factor of 1.44, as between bits and nats; write all in nats",
            )
        )
    if outliers := [runs.ids[row] for row in np.flatnonzero(~kept)]:
        found.append(
            Diagnostic(
                code="outliers",
                message=f"left out, further from the law than noise explains: {name_rows(outliers)}; "
                "check their tuning, or fit with objective = 'least-squares' to use them",
            )
        )
    ratio, x = np.log(used.tokens / used.params), np.log(used.params)
    intercept, slope = fit_line(x, ratio, np.ones_like(x))
    if float((ratio - intercept - slope * x).std()) < 0.35:
        found.append(
            Diagnostic(
                code="one-ratio",
                message=f"nearly all runs of one N have one D / N (about {np.exp(np.median(ratio)):.3g}), which "
                "cannot tell alpha from beta; train some runs at 4 times and at 1/4 of it",
            )
        )
    if not fit.free[0]:
        found.append(
            Diagnostic(
                code="no-irreducible-loss",
                message="E = 0 fits best: the runs do not reach far enough to see the loss flatten, so losses far "
                "beyond them are too low; train over a wider range of N and D",
            )
        )
    if not fit.determined:
        text = (
            "the runs do not tell the five parameters apart: trust losses within the fitted range, not exponents"
        )
        found.append(Diagnostic(code="ill-conditioned", message=text))
    if not fit.converged:
        found.append(
            Diagnostic(code="not-converged", message="the solver did not converge: do not rely on this fit")
        )
    if misfit := _lack_of_fit(fit, used):
        found.append(Diagnostic(code="lack-of-fit", message=misfit))
    if not constraint.is_6n:
        found.append(
            note(
                "flops-per-token",
                "C is not 6 N D in these runs: optima follow their own FLOPs per token, a smooth curve in ln N, "
                "and a and b are means over the fitted budgets, so a + b need not be 1",
            )
        )
    return found


def about_draws(runs: int, dof: int, at_bound: int, draws: int) -> list[Diagnostic]:
    """What parametric intervals rest on: ``at_bound`` of the ``draws`` do not determine all parameters."""
    found = []
    if dof < 10:
        found.append(
            note(
                "few-runs",
                f"{runs} runs leave {dof} degrees of freedom to learn the noise from, so intervals rest on a "
                "guess of how much more under-trained runs vary: where that is 5 times, they hold the truth a "
                "little less often than they say; train 15 or more",
            )
        )
    if at_bound:
        message = (
            f"{at_bound} of {draws} bootstrap refits ended with a term that vanishes or an exponent out of "
            "bounds; they are kept, so intervals are wide and their ends rough: these runs hardly determine all "
            "five parameters; widen the range of N and of D / N, or train more runs"
        )
        severity: Literal["note", "warning"] = "warning" if at_bound > 0.01 * draws else "note"
        found.append(Diagnostic(code="weakly-determined", message=message, severity=severity))
    return found


def _lack_of_fit(fit: SurfaceFit, used: Runs) -> str | None:
    """An F test at 1% of what quadratic terms in ln N and ln D would add to the law."""
    u, v = fit.problem.u, fit.problem.v
    small = fit.jacobian[:, fit.free]
    large = np.column_stack([small, u**2, u * v, v**2])
    dof = len(u) - large.shape[1]
    if dof < 5:
        return None
    rss = [
        float(np.sum((fit.residuals - x @ np.linalg.lstsq(x, fit.residuals, rcond=None)[0]) ** 2))
        for x in (small, large)
    ]
    sigma = np.sqrt(rss[1] / dof)
    if sigma < 1e-9 or stats.f.sf((rss[0] - rss[1]) / 3 / (rss[1] / dof), 3, dof) > 0.01:
        return None
    worst = [used.ids[row] for row in np.argsort(-np.abs(fit.residuals))[:3]]
    return (
        f"residuals follow a pattern in N and D that noise of {sigma:.2%} does not explain: these losses have "
        f"another shape than the law, or runs were tuned unevenly (furthest off: {name_rows(worst)}); "
        "trust it within the fitted range only"
    )


def _left_over(x: Floats, y: Floats) -> float:
    """Sum of squares of y that least squares on the columns of x leaves."""
    return float(np.sum((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2))


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
