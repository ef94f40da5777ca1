"""Optima of all budgets from one regression (:mod:`profile_law`): its budgets and runs, and its draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs
from flops_fit_core.fitting.diagnostics import count_runs, explain_unusable
from flops_fit_core.fitting.distributions import t_upper_quantile
from flops_fit_core.fitting.fitters.minima import Estimate, Minima, Noise, estimate_scatter
from flops_fit_core.fitting.fitters.profile_law import ProfileFit, ProfileRuns, fit_profiles
from flops_fit_core.fitting.fitters.profile_noise import (
    MAX_NOISE_MODEL_RUNS,
    draw_errors,
    draw_lines,
    lowest_errors,
    separate_optima,
)
from flops_fit_core.fitting.fitters.profile_outliers import RobustFit, fit_without_outliers
from flops_fit_core.fitting.fitters.profile_prior import CURVATURE_ERROR
from flops_fit_core.fitting.fitters.profiles import MAX_EXCESS, MIN_NEAR_SIZES, Group, Profile, fit_profile
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.uncertainty.refits import OUTLIER
from flops_fit_core.records import Diagnostic

FAR = f"loss more than {MAX_EXCESS:.0%} above the lowest of its budget: too far from the optimum to locate it"
_WINDOW_ROUNDS = 5
_MAX_CURVATURE_SHARE = 0.4
"""No interval if the runs leave more than this share of the prior's uncertainty of ln c."""
_CONCAVE_CHANCE = 0.01
"""Chance that any profile of a study with Gaussian noise counts as bending downwards."""


def regress_optima(
    runs: Runs,
    response: Floats,
    profiles: Sequence[Profile],
    flops_per_token: FlopsPerToken,
    *,
    is_log: bool,
    is_robust: bool,
    draws: int,
    level: float,
    random: np.random.Generator,
    seed: int,
) -> Estimate:
    """Optima of the budgets, and draws of them. Raises FitError if fewer than two budgets can be used.

    A profile with its lowest loss at an edge, or that bends downwards, is used if the regression of all budgets
    places the optimum among its sizes: noise has that effect. A profile that bends downwards by more than the
    noise of the other profiles is left out. So are runs far from the optimum of their budget (``MAX_EXCESS``).
    """
    used, regression = _select_budgets(runs, response, profiles, is_log, is_robust)
    robust, rows = regression.robust, regression.rows
    fit = robust.fit
    ln_budgets = np.log([profile.budget for profile in used])
    centre = _ln_params_centre(runs, used)
    z = fit.runs.budget_z
    n0, a = fit.line
    optima = (centre + n0 + a * z)[None]
    minima = Minima(optima, ln_budgets - flops_per_token(optima), fit.lowest[None])
    shift, variances, sigma, dof = separate_optima(fit)
    tau, tau_dof, scatter = estimate_scatter(ln_budgets, optima + shift, 1 / variances, Noise(sigma, dof))
    drawn, reason = _draw_optima(
        fit,
        runs,
        rows[robust.accepted],
        ln_budgets,
        centre,
        flops_per_token.drawn(draws, seed),
        draws,
        level,
        random,
    )
    rejected = {int(row): FAR for row in regression.far}
    rejected |= {int(rows[row]): OUTLIER for row, _ in robust.offsets}
    return Estimate(
        profiles=tuple(_without(profile, rejected, runs, response, is_log) for profile in used),
        n_runs=len(fit.runs.y),
        minima=minima,
        drawn=drawn,
        weights=1 / variances,
        loss_error=lowest_errors(fit),
        noise_dof=max(round(fit.dof), 1),
        scatter=(tau, tau_dof),
        rss=fit.rss,
        rejected=rejected,
        warnings=(*_describe_outliers(robust, runs, rows), *([scatter] if scatter else [])),
        no_interval=reason,
    )


def _select_budgets(
    runs: Runs, response: Floats, profiles: Sequence[Profile], is_log: bool, is_robust: bool
) -> tuple[list[Profile], _Regression]:
    """The budgets that the law uses, and their regression."""
    used = [profile for profile in profiles if profile.verdict != "too few sizes"]
    used = [profile for profile in used if not _is_concave(profile, used)]
    while True:
        if len(used) < 2:
            raise FitError(explain_too_few_minima(profiles, used))
        try:
            regression = _regress(runs, response, used, is_log, is_robust)
        except FitError as error:
            raise FitError(explain_too_few_minima(profiles, [], str(error))) from None
        outside = _distances_outside(regression.robust.fit, used, runs)
        if max(outside) <= 0:
            break
        used.pop(int(np.argmax(outside)))
    return used, regression


@dataclass(frozen=True)
class _Regression:
    """The regression, the rows of the runs that it uses, and those that it leaves out."""

    robust: RobustFit
    rows: Ints
    """Rows near the optima; ``robust`` covers these."""
    far: Ints
    """Rows of runs too far from the optimum of their budget."""


def _regress(runs: Runs, response: Floats, used: list[Profile], is_log: bool, is_robust: bool) -> _Regression:
    """Fit the runs near the optima, which depend on the fit: repeat until the set is stable."""
    groups = [_all_rows(profile) for profile in used]
    rows = np.concatenate(groups)
    numbers = np.repeat(np.arange(len(used)), [len(group) for group in groups])
    x = np.log(runs.params[rows])
    ln_budgets = np.log([profile.budget for profile in used])[numbers]
    data = ProfileRuns(x - x.mean(), ln_budgets - ln_budgets.mean(), numbers, response[rows], is_log)
    trunk = np.unique([runs.trunks[row] for row in rows], return_inverse=True)[1]
    is_near = np.ones(len(rows), dtype=bool)
    for _ in range(_WINDOW_ROUNDS):
        near = data.take(is_near)
        robust = (
            fit_without_outliers(near, trunk[is_near], MAX_NOISE_MODEL_RUNS)
            if is_robust
            else RobustFit(fit_profiles(near), np.ones(len(near.y), dtype=bool), tried=False)
        )
        result = _Regression(robust, rows[is_near], rows[~is_near])
        previous, is_near = is_near, _find_near(robust.fit, data)
        if (is_near == previous).all():
            break
    return result


def _find_near(fit: ProfileFit, data: ProfileRuns) -> Bools:
    """Runs with a fitted loss close to the lowest of their budget, and the nearest sizes of every budget."""
    response = data.evaluate(fit.theta)[0]
    excess = (np.exp(response) if data.is_log else response) / fit.lowest[data.budget] - 1
    is_near: Bools = excess <= MAX_EXCESS
    for number in range(data.budgets):
        rows = np.flatnonzero(data.budget == number)
        sizes = np.round(data.x[rows], 9)
        by_size = sorted(
            {float(size): float(value) for size, value in zip(sizes, excess[rows], strict=True)}.items(),
            key=lambda item: item[1],
        )
        nearest = [size for size, _ in by_size[:MIN_NEAR_SIZES]]
        is_near[rows] |= np.isin(sizes, nearest)
    return is_near


def _is_concave(profile: Profile, profiles: Sequence[Profile]) -> bool:
    """Whether a profile bends downwards by more than the noise of the other profiles explains."""
    if profile.verdict != "not convex":
        return False
    others = [other for other in profiles if other is not profile]
    dof = sum(other.dof for other in others)
    if dof < 1:
        return False
    sigma = np.sqrt(sum(float(other.residuals @ other.residuals) for other in others) / dof)
    standard_error = sigma * np.sqrt(profile.solver[2] @ profile.solver[2])
    bound = float(t_upper_quantile(_CONCAVE_CHANCE / len(profiles), dof))
    return bool(profile.coefficients[2] < -bound * standard_error)


def _distances_outside(fit: ProfileFit, used: list[Profile], runs: Runs) -> list[float]:
    """How far N_opt lies outside the sizes of each budget, in ln N; 0 for a profile with its own minimum."""
    distances = []
    n0, a = fit.line
    centre = _ln_params_centre(runs, used)
    for profile, z in zip(used, fit.runs.budget_z, strict=True):
        optimum = centre + n0 + a * float(z)
        x = np.log(runs.params[_all_rows(profile)])
        distance = max(float(x.min()) - optimum, optimum - float(x.max()))
        distances.append(0.0 if profile.verdict == "interior" else max(distance, 0.0))
    return distances


def _draw_optima(
    fit: ProfileFit,
    runs: Runs,
    rows: Ints,
    ln_budgets: Floats,
    centre: float,
    drawn_flops: FlopsPerToken,
    draws: int,
    level: float,
    random: np.random.Generator,
) -> tuple[Minima, str]:
    """Draws of the optima on the line, or no draws and the reason."""
    none = Minima(*np.empty((3, 0, len(ln_budgets))))
    if draws < 1:
        return none, ""
    if len(ln_budgets) < 3:
        return none, (
            "the law uses only two budgets, and a line through two points fits exactly, so the exponents have no "
            "interval; add a third budget"
        )
    trunk = np.unique([runs.trunks[row] for row in rows], return_inverse=True)[1]
    lines = draw_lines(fit, draw_errors(fit, trunk, draws, random))
    low, high = np.quantile(lines.ln_curvature, [0.159, 0.841])
    if (high - low) / 2 > _MAX_CURVATURE_SHARE * CURVATURE_ERROR:
        return none, (
            "the noise of the runs hides the curvature of the profiles, so an interval would only reflect the "
            "assumed curvature; widen the grids or train more seeds"
        )
    ln_params = centre + lines.n0[:, None] + lines.a[:, None] * fit.runs.budget_z
    return Minima(ln_params, ln_budgets - drawn_flops(ln_params), lines.lowest), ""


def _all_rows(profile: Profile) -> Ints:
    return np.sort(np.concatenate([profile.rows, profile.far]))


def _ln_params_centre(runs: Runs, used: Sequence[Profile]) -> float:
    """Ln N at x = 0 of the regression."""
    return float(np.log(runs.params[np.concatenate([_all_rows(profile) for profile in used])]).mean())


def _without(profile: Profile, rejected: dict[int, str], runs: Runs, response: Floats, is_log: bool) -> Profile:
    """The profile without rejected runs."""
    rows = _all_rows(profile)
    accepted = np.array([int(row) for row in rows if int(row) not in rejected])
    if len(accepted) == len(rows):
        return profile
    group = Group(profile.budget, accepted)
    return fit_profile(group, np.log(runs.params), response, profile.shape, is_log)


def _describe_outliers(robust: RobustFit, runs: Runs, rows: Ints) -> list[Diagnostic]:
    if robust.too_many:
        message = (
            f"{robust.too_many} of {len(rows)} runs lie further from the profiles than noise explains. These are "
            "too many to leave out, so every run is used; check the tuning of the runs, and whether the table "
            "mixes kinds of runs"
        )
        return [Diagnostic(code="outliers", message=message)]
    if not robust.offsets:
        return []
    errors = [
        f"{runs.ids[rows[row]]} ({numbers.change(1 + error, 2)})"
        if robust.fit.runs.is_log
        else f"{runs.ids[rows[row]]} ({error:+.3g})"
        for row, error in robust.offsets
    ]
    message = (
        f"{count_runs(len(errors))} left out, further off the profiles than noise explains: {', '.join(errors)}; "
        "check the tuning of these runs, or fit with objective = 'least-squares' to use them"
    )
    return [Diagnostic(code="outliers", message=message)]


def explain_too_few_minima(profiles: Sequence[Profile], used: Sequence[Profile], reason: str = "") -> str:
    count = "only one budget has" if used else "no budget has"
    reasons = "".join(f"\n  {text}" for code, text in map(explain_unusable, profiles) if code)
    more = "" if len(profiles) > 2 else "; train at least three budgets"
    if reason:
        return f"{reason}{more}{reasons}"
    return f"{count} a minimum inside its grid; an exponent needs two, preferably four{more}{reasons}"
