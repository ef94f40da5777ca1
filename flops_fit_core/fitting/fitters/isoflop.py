"""The IsoFLOP law: N_opt, D_opt and L_opt as power laws of C through the minima of the profiles.

    ln N_opt = ln_kN + a ln C        ln D_opt = ln_kD + b ln C        L_opt = E + exp(ln_kL) C^-gamma

Approach 2 of Hoffmann et al. 2022; with ``shape = "akima"`` as Porian et al. 2024 (arXiv 2406.19146) do it.
The minima of parabolas are biased where profiles are not symmetric in ln N (their alpha and beta differ)
and the grid is wide; those of Approach 3 are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import block_diag

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Runs
from flops_fit_core.fitting.diagnostics import about_profiles, about_runs, note, unusable
from flops_fit_core.fitting.fitters.minima import (
    Minima,
    Noise,
    fit_laws,
    median_draw,
    relative_variances,
    saturates,
    scatter,
    scatter_draws,
    seed_noise,
    shift,
    spread,
)
from flops_fit_core.fitting.fitters.profiles import (
    Profile,
    Response,
    Shape,
    fit_profile,
    group_by_budget,
    move_to_budgets,
    profile_record,
)
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import optimum
from flops_fit_core.fitting.numerical_errors import guarded
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.fitting.uncertainty.noise import describe_runs, fit_noise
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.plugins.utilities import fit_header
from flops_fit_core.records import Diagnostic, Law, LawFit, Observation, Optimum, ProfileMinimum

MANY = 2000
"""Runs above which the noise is taken as one level for all: its model costs too much and changes little."""


@dataclass(frozen=True)
class IsoflopFitter(Fitter):
    """Fits the IsoFLOP law. Same observations and options, same fit."""

    level: float = 0.9
    """Of all intervals."""
    draws: int = 1000
    """Bootstrap draws; 0 for no intervals."""
    seed: int = 0
    """Of the bootstrap."""
    response: Response = "log-loss"
    """What the profile is fitted to."""
    shape: Shape = "parabola"
    """``akima`` interpolates and takes its noise from ``seed_noise``, as Porian et al. 2024 do."""
    name: str = "fitters/isoflop"
    """Qualified name under which the fit is recorded."""

    @guarded
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Raises FitError, saying what to train, where fewer than two budgets have a minimum inside."""
        runs = Runs.of(observations)
        flops_per_token = FlopsPerToken.of(runs, self.draws > 0, self.seed)
        groups = group_by_budget(runs)
        moved = move_to_budgets(runs, groups)
        response = moved if self.response == "log-loss" else np.exp(moved)
        profiles = [fit_profile(group, np.log(runs.params), response, self.shape) for group in groups]
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
        budgets = [profile.budget for profile in inside]
        ln_budgets = np.log(budgets)
        minima, _ = self._minima(inside, [profile.y[None] for profile in inside], ln_budgets, flops_per_token)
        noise = self._noise(inside)
        random = np.random.default_rng(self.seed)
        trunks = [runs.trunks[row] for profile in inside for row in profile.rows]
        errors = self._errors(inside, trunks, noise, random)
        drawn_flops = flops_per_token.drawn(len(errors), self.seed)
        drawn, good = self._draw(inside, errors, ln_budgets, drawn_flops)
        if self.shape == "akima":
            weights, minima = 1 / spread(drawn, inside), median_draw(drawn, minima)
        else:
            weights = 1 / relative_variances(inside)
        saturating = saturates(ln_budgets, minima.loss)
        law = {key: float(value[0]) for key, value in fit_laws(ln_budgets, minima, weights, saturating).items()}
        found.append(_about_loss(saturating, len(inside)))
        tau, dof, warning = scatter(ln_budgets, minima.ln_params, weights, noise)
        found += [warning] if warning else []
        draws, failed = {}, 0
        if self._has_interval(inside, noise, found):
            failed = int(self.draws - good.sum())
            drawn = shift(drawn, scatter_draws(tau, dof, len(good), random), ln_budgets, drawn_flops, random)
            draws = fit_laws(ln_budgets, drawn.take(good), weights, saturating)
            if failed > 0.01 * self.draws:
                draws = {}
                found.append(_too_many_failed(failed, self.draws))
        rows = np.concatenate([profile.rows for profile in inside])
        return LawFit(
            **fit_header(self, self.name, flops=budgets, params=runs.params, draws=draws),
            law=Law(name="isoflop", parameters=law),
            exponents={key: interval(law[key], draws.get(key, np.empty(0)), self.level) for key in ("a", "b")},
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
            failed_draws=failed,
        )

    def _minima(
        self, profiles: list[Profile], responses: list[Floats], ln_budgets: Floats, flops_per_token: FlopsPerToken
    ) -> tuple[Minima, Bools]:
        """``responses`` holds (draws, runs) a profile. Also: which draws have a minimum in every profile."""
        found = [profile.minima(y) for profile, y in zip(profiles, responses, strict=True)]
        ln_params = np.stack([one[0] for one in found], axis=1)
        lowest = np.stack([one[1] for one in found], axis=1)
        there: Bools = np.logical_and.reduce([one[2] for one in found])
        loss = np.exp(lowest) if self.response == "log-loss" else lowest
        return Minima(ln_params, ln_budgets - flops_per_token(ln_params), loss), there

    def _noise(self, inside: list[Profile]) -> Noise:
        """Its level, from the residuals; an interpolated profile has none: :func:`seed_noise` holds."""
        if self.shape == "akima":
            return Noise(1.0, 10**6)
        dof = sum(profile.dof for profile in inside)
        rss = sum(float(np.sum(profile.residuals**2)) for profile in inside)
        return Noise(float(np.sqrt(rss / dof)) if dof else 0.0, dof)

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

    def _errors(
        self, inside: list[Profile], trunks: list[str], noise: Noise, random: np.random.Generator
    ) -> Floats:
        """Errors of all runs in all profiles, shape (draws, runs).

        From one model of the noise for all profiles: it may be larger on the under-trained side, and shared by
        runs of one trunk.
        """
        count = len(trunks)
        if not noise.dof:
            return np.empty((0, count))
        if self.shape == "akima":
            sd: Floats = np.concatenate([seed_noise(profile.y, self.response) for profile in inside])
            return np.asarray(random.standard_normal((self.draws, count)) * sd)
        if count > MANY:
            return np.asarray(random.standard_normal((self.draws, count)) * noise.sigma)
        design = block_diag(*(profile.design for profile in inside))
        offset = np.concatenate([profile.u + profile.centre - profile.ln_params for profile in inside])
        residuals = np.concatenate([profile.residuals for profile in inside])
        trunk = np.unique(trunks, return_inverse=True)[1]
        ln_params = np.concatenate([profile.u + profile.centre for profile in inside])
        ln_flops = np.concatenate([np.full(len(profile.u), np.log(profile.budget)) for profile in inside])
        covariates = describe_runs(offset, ln_params, ln_flops)
        return fit_noise(residuals, design, covariates, trunk).draw(self.draws, random)

    def _draw(
        self, inside: list[Profile], errors: Floats, ln_budgets: Floats, flops_per_token: FlopsPerToken
    ) -> tuple[Minima, Bools]:
        """Minima of resampled profiles, and which draws have one near every grid."""
        responses, start = [], 0
        for profile in inside:
            mine = errors[:, start : start + len(profile.rows)]
            start += len(profile.rows)
            responses.append(profile.y - profile.residuals + mine)
        return self._minima(inside, responses, ln_budgets, flops_per_token)

    def _record(self, profile: Profile, flops_per_token: FlopsPerToken) -> ProfileMinimum:
        ln_params = np.array([profile.ln_params])
        ln_tokens = float(np.log(profile.budget) - flops_per_token(ln_params)[0])
        return profile_record(profile, ln_tokens, self.response)


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
