"""The IsoFLOP law: N_opt, D_opt and L_opt as power laws of C through the minima of the profiles.

    ln N_opt = ln_kN + a ln C        ln D_opt = ln_kD + b ln C        L_opt = E + exp(ln_kL) C^-gamma

Approach 2 of Hoffmann et al. 2022. Its minima are biased where a profile is not symmetric in ln N (their
alpha and beta differ) and the grid is wide; Approach 3 is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.bootstrap import Noise, draw_noise, estimate_noise, interval, unknown_scale
from flops_fit_core.fitting.constraint import FlopsPerToken
from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.diagnostics import about_profiles, about_runs, note, unusable
from flops_fit_core.fitting.optima import optimum
from flops_fit_core.fitting.powerlaw import fit_line, fit_saturating
from flops_fit_core.fitting.profiles import (
    Profile,
    Response,
    depth,
    fit_profile,
    group_by_budget,
    move_to_budgets,
    profile_record,
    vertex,
)
from flops_fit_core.records import Diagnostic, Law, LawFit, Observation, Optimum, PluginChoice, ProfileMinimum


@dataclass(frozen=True)
class Minima:
    """Ln N, ln D and L at the minimum of every profile; the last axis is the profile."""

    ln_params: Floats
    ln_tokens: Floats
    loss: Floats


@dataclass(frozen=True)
class IsoflopFitter:
    """Fits the IsoFLOP law. Same observations and options, same fit."""

    level: float = 0.9
    """Of all intervals."""
    draws: int = 1000
    """Bootstrap draws; 0 for no intervals."""
    seed: int = 0
    """Of the bootstrap."""
    response: Response = "log-loss"
    """What the parabola is fitted to."""
    name: str = "fitters/isoflop"
    """Qualified name under which the fit is recorded."""

    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Raises FitError, saying what to train, where fewer than two budgets have a minimum inside."""
        runs = Runs.of(observations)
        flops_per_token = FlopsPerToken.of(runs)
        groups = group_by_budget(runs)
        moved = move_to_budgets(runs, groups)
        response = moved if self.response == "log-loss" else np.exp(moved)
        profiles = [fit_profile(group, np.log(runs.params), response) for group in groups]
        inside = [profile for profile in profiles if profile.verdict == "interior"]
        if len(inside) < 2:
            raise FitError(_too_few(profiles, inside))
        found = about_profiles(profiles) + about_runs(runs, flops_per_token)
        return self._law(runs, profiles, inside, flops_per_token, found)

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        """N_opt, D_opt and L_opt for C = ``flops``, with intervals from the fit's draws."""
        return optimum(fit, flops)

    def _law(
        self,
        runs: Runs,
        profiles: list[Profile],
        inside: list[Profile],
        flops_per_token: FlopsPerToken,
        found: list[Diagnostic],
    ) -> LawFit:
        ln_budgets = np.log([profile.budget for profile in inside])
        minima = self._minima(inside, np.stack([one.coefficients for one in inside]), ln_budgets, flops_per_token)
        weights = 1 / relative_variances(inside)
        saturates = _saturates(ln_budgets, minima.loss)
        law = {key: float(value[0]) for key, value in _fit_laws(ln_budgets, minima, weights, saturates).items()}
        found.append(_about_loss(saturates, len(inside)))
        noise = _noise_of(inside)
        scatter, scatter_dof, warning = _scatter(ln_budgets, minima.ln_params, weights, noise)
        found += [warning] if warning else []
        draws, failed = {}, 0
        if self._has_interval(inside, noise, found):
            drawn, failed = self._draw(inside, ln_budgets, flops_per_token, noise, (scatter, scatter_dof))
            draws = _fit_laws(ln_budgets, drawn, weights, saturates)
            if failed > 0.01 * self.draws:
                draws = {}
                found.append(_too_many_failed(failed, self.draws))
        rows = np.concatenate([profile.rows for profile in inside])
        return LawFit(
            fitter=PluginChoice(name=self.name, options=self._options()),
            law=Law(name="isoflop", parameters=law),
            exponents={key: interval(law[key], draws.get(key, np.empty(0)), self.level) for key in ("a", "b")},
            level=self.level,
            objective=float(sum(np.sum(profile.residuals**2) for profile in inside)),
            n_runs=len(rows),
            excluded={
                runs.ids[row]: text
                for one in profiles
                for code, text in [unusable(one)]
                if code
                for row in one.rows
            },
            diagnostics=tuple(found),
            minima=tuple(self._record(profile, flops_per_token) for profile in profiles),
            draws={key: tuple(values.tolist()) for key, values in draws.items()},
            failed_draws=failed,
            flops_range=(inside[0].budget, inside[-1].budget),
            seed=self.seed,
        )

    def _options(self) -> dict[str, Any]:
        mine = {"level": self.level, "draws": self.draws, "seed": self.seed, "response": self.response}
        return {key: value for key, value in mine.items() if value != getattr(type(self), key)}

    def _minima(
        self, profiles: list[Profile], coefficients: Floats, ln_budgets: Floats, flops_per_token: FlopsPerToken
    ) -> Minima:
        """``coefficients`` has shape (..., profiles, 3)."""
        coefficients = np.atleast_3d(coefficients) if coefficients.ndim > 2 else coefficients[None]
        ln_params = vertex(coefficients) + np.array([profile.centre for profile in profiles])
        lowest = depth(coefficients)
        loss = np.exp(lowest) if self.response == "log-loss" else lowest
        return Minima(ln_params, ln_budgets - flops_per_token(ln_params), loss)

    def _has_interval(self, inside: list[Profile], noise: Noise, found: list[Diagnostic]) -> bool:
        if self.draws < 1:
            return False
        if len(inside) < 3:
            message = (
                "only two budgets have a minimum inside their grid: a line through two points fits exactly, so "
                "the exponents have no interval; add a third budget"
            )
        elif noise.dof < 1:
            message = (
                "every parabola passes through all of its runs, so nothing is known of their noise and there are "
                "no intervals; train 5 or more sizes a budget, or a second seed"
            )
        else:
            return True
        found.append(Diagnostic(code="no-interval", message=message))
        return False

    def _draw(
        self,
        inside: list[Profile],
        ln_budgets: Floats,
        flops_per_token: FlopsPerToken,
        noise: Noise,
        scatter: tuple[float, int],
    ) -> tuple[Minima, int]:
        """Minima of resampled profiles, and how many draws had one without a minimum near its grid."""
        random = np.random.default_rng(self.seed)
        errors = draw_noise(noise, (self.draws, sum(len(one.rows) for one in inside)), random)
        ends = np.cumsum([len(one.rows) for one in inside])
        drawn = [
            (profile.fitted + errors[:, end - len(profile.rows) : end]) @ profile.solver.T
            for profile, end in zip(inside, ends, strict=True)
        ]
        coefficients = np.stack(drawn, axis=1)
        reach = np.array([profile.u.max() - profile.u.min() for profile in inside])
        good = np.all((coefficients[..., 2] > 0) & (np.abs(vertex(coefficients)) < 1.5 * reach), axis=1)
        kept = self._minima(inside, coefficients[good], ln_budgets, flops_per_token)
        tau, dof = scatter
        if tau > 0:
            shift = tau * random.standard_normal(kept.ln_params.shape)
            shift *= unknown_scale(dof, self.draws, random)[good][:, None]
            ln_params = kept.ln_params + shift
            kept = Minima(ln_params, ln_budgets - flops_per_token(ln_params), kept.loss)
        return kept, int(self.draws - good.sum())

    def _record(self, profile: Profile, flops_per_token: FlopsPerToken) -> ProfileMinimum:
        ln_params = np.array([profile.ln_params])
        ln_tokens = float(np.log(profile.budget) - flops_per_token(ln_params)[0])
        return profile_record(profile, ln_tokens, self.response)


def relative_variances(profiles: list[Profile]) -> Floats:
    """Variance of ln N at each minimum for runs of variance 1, by the delta method.

    All profiles take the median curvature: with few runs a budget its own is so noisy that it would hand
    the weight to whichever budget was bent most by chance.
    """
    curvature = float(np.median([profile.coefficients[2] for profile in profiles]))
    out = []
    for profile in profiles:
        c1, c2 = profile.coefficients[1:]
        turn = -c1 / (2 * c2)
        gradient = (-profile.solver[1] - 2 * turn * profile.solver[2]) / (2 * curvature)
        out.append(gradient @ gradient)
    return np.array(out)


def _noise_of(inside: list[Profile]) -> Noise:
    return estimate_noise(
        np.concatenate([profile.residuals for profile in inside]),
        np.concatenate([profile.leverage for profile in inside]),
        sum(profile.dof for profile in inside),
    )


def _saturates(ln_budgets: Floats, loss: Floats) -> bool:
    """Whether the lowest losses support an irreducible term: four budgets or more, and a positive E."""
    return len(ln_budgets) >= 4 and not fit_saturating(ln_budgets, loss).at_bound[0]


def _fit_laws(ln_budgets: Floats, minima: Minima, weights: Floats, saturates: bool) -> dict[str, Floats]:
    ln_kn, a = fit_line(ln_budgets, minima.ln_params, weights)
    ln_kd, b = fit_line(ln_budgets, minima.ln_tokens, weights)
    law = {"ln_kN": ln_kn, "a": a, "ln_kD": ln_kd, "b": b}
    if saturates:
        loss = fit_saturating(ln_budgets, minima.loss)
        return {**law, "E": loss.e, "ln_kL": loss.ln_k, "gamma": loss.gamma}
    ln_kl, slope = fit_line(ln_budgets, np.log(minima.loss), np.ones_like(ln_budgets))
    return {**law, "E": np.zeros_like(slope), "ln_kL": ln_kl, "gamma": -slope}


def _scatter(
    ln_budgets: Floats, ln_params: Floats, weights: Floats, noise: Noise
) -> tuple[float, int, Diagnostic | None]:
    """Spread of the minima around their line beyond what the runs' noise explains: (sd of ln N, dof, warning).

    Zero unless an F test at 5% says that there is some; then by the method of moments, as in a random-effects
    meta-analysis (DerSimonian and Laird 1986).
    """
    dof = len(ln_budgets) - 2
    if dof < 1 or noise.sigma == 0:
        return 0.0, 0, None
    intercept, slope = fit_line(ln_budgets, ln_params, weights)
    precision = weights / noise.sigma**2
    q = float(precision @ (ln_params[0] - intercept[0] - slope[0] * ln_budgets) ** 2)
    if stats.f.sf(q / dof, dof, noise.dof) > 0.05:
        return 0.0, 0, None
    design = np.stack([np.ones_like(ln_budgets), ln_budgets], axis=1)
    inner = np.linalg.inv(design.T @ (precision[:, None] * design))
    spare = precision.sum() - np.trace(inner @ (design.T @ ((precision**2)[:, None] * design)))
    tau = float(np.sqrt(max(0.0, (q - dof) / spare)))
    message = (
        f"the minima lie further from a straight line in ln C than the runs' noise explains (an extra {tau:.2g} "
        "in ln N, added to the intervals); look for budgets tuned differently, or for a law that is no power law"
    )
    return tau, dof, Diagnostic(code="scatter", message=message)


def _about_loss(saturates: bool, budgets: int) -> Diagnostic:
    if saturates:
        return note("loss-law", "L_opt(C) is E + k C^-gamma, fitted to the lowest loss of each budget")
    reason = (
        "fewer than 4 budgets" if budgets < 4 else "the budgets do not reach far enough to see where it flattens"
    )
    return note(
        "loss-law",
        f"L_opt(C) is k C^-gamma without an irreducible term ({reason}): too low far beyond the budgets",
    )


def _too_many_failed(failed: int, draws: int) -> Diagnostic:
    return Diagnostic(
        code="no-interval",
        message=f"{failed} of {draws} bootstrap draws had a profile without a minimum near its grid: the "
        "curvature is not resolved, so there are no intervals; widen the grids or train more seeds",
    )


def _too_few(profiles: list[Profile], inside: list[Profile]) -> str:
    count = "only one budget has" if inside else "no budget has"
    reasons = "".join(f"\n  {text}" for code, text in map(unusable, profiles) if code)
    more = "" if len(profiles) > 2 else "; train at least three budgets"
    return f"{count} a minimum inside its grid, and an exponent needs two, better four{more}{reasons}"
