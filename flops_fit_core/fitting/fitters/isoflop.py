"""The IsoFLOP law: N_opt, D_opt and L_opt as power laws of C through the minima of the profiles.

    ln N_opt = ln_kN + a ln C        ln D_opt = ln_kD + b ln C        L_opt = E + exp(ln_kL) C^-gamma

Approach 2 of Hoffmann et al. 2022; with ``shape = "akima"``, the variant of Porian et al. 2024 (arXiv 2406.19146).
The minima of parabolas are biased if the grid is wide and profiles are not symmetric in ln N (alpha and beta
differ). Approach 3 has none of this bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import block_diag

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Runs
from flops_fit_core.fitting.diagnostics import check_profiles, check_runs, explain_unusable, note
from flops_fit_core.fitting.fitters.base import BootstrapFitter
from flops_fit_core.fitting.fitters.minima import (
    Minima,
    Noise,
    add_scatter,
    draw_scatter,
    estimate_scatter,
    fit_laws,
    has_irreducible_term,
    median_draw,
    minimum_variances,
    relative_variances,
    seed_noise,
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
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.fitting.uncertainty.noise import build_covariates, fit_noise
from flops_fit_core.plugins.utilities import fit_header
from flops_fit_core.records import Diagnostic, Law, LawFit, Observation, ProfileMinimum

MAX_NOISE_MODEL_RUNS = 2000
"""With more runs, all runs get the same noise level: the noise model costs too much and changes little."""


@dataclass(frozen=True)
class IsoflopFitter(BootstrapFitter):
    """Fits the IsoFLOP law."""

    response: Response = "log-loss"
    """Response of the profile: ln L or L."""
    shape: Shape = "parabola"
    """``akima`` interpolates and takes its noise from ``seed_noise``, as in Porian et al. 2024."""
    name: str = "fitters/isoflop"

    @convert_numerical_errors
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Fit the law. Raises FitError, with advice, if fewer than two budgets have an interior minimum."""
        runs = Runs.of(observations)
        flops_per_token = FlopsPerToken.of(runs, self.draws > 0, self.seed)
        groups = group_by_budget(runs)
        moved = move_to_budgets(runs, groups)
        response = moved if self.response == "log-loss" else np.exp(moved)
        profiles = [fit_profile(group, np.log(runs.params), response, self.shape) for group in groups]
        usable = [profile for profile in profiles if profile.verdict == "interior"]
        if len(usable) < 2:
            raise FitError(_explain_too_few_minima(profiles, usable))
        diagnostics = check_profiles(profiles) + check_runs(runs, flops_per_token)
        return self._build_fit(runs, profiles, usable, flops_per_token, diagnostics)

    def _build_fit(
        self,
        runs: Runs,
        profiles: list[Profile],
        usable: list[Profile],
        flops_per_token: FlopsPerToken,
        diagnostics: list[Diagnostic],
    ) -> LawFit:
        ln_budgets = np.log([profile.budget for profile in usable])
        minima, _ = self._find_minima(usable, [profile.y[None] for profile in usable], ln_budgets, flops_per_token)
        noise = self._estimate_noise(usable)
        random = np.random.default_rng(self.seed)
        trunks = [runs.trunks[row] for profile in usable for row in profile.rows]
        errors = self._draw_errors(usable, trunks, noise, random)
        drawn_flops = flops_per_token.drawn(len(errors), self.seed)
        drawn, valid = self._draw_minima(usable, errors, ln_budgets, drawn_flops)
        if self.shape == "akima":
            weights, minima = 1 / minimum_variances(drawn, usable), median_draw(drawn, minima)
        else:
            weights = 1 / relative_variances(usable)
        is_saturating = has_irreducible_term(ln_budgets, minima.loss)
        law = {key: float(value[0]) for key, value in fit_laws(ln_budgets, minima, weights, is_saturating).items()}
        diagnostics.append(_describe_loss_law(is_saturating, len(usable)))
        tau, dof, warning = estimate_scatter(ln_budgets, minima.ln_params, weights, noise)
        diagnostics += [warning] if warning else []
        draws, failed = {}, 0
        if self._check_interval(usable, noise, diagnostics):
            failed = int(self.draws - valid.sum())
            drawn = add_scatter(drawn, draw_scatter(tau, dof, len(valid), random), ln_budgets, drawn_flops, random)
            draws = fit_laws(ln_budgets, drawn.take(valid), weights, is_saturating)
            if failed > 0.01 * self.draws:
                draws = {}
                diagnostics.append(_report_failed_draws(failed, self.draws))
        rows = np.concatenate([profile.rows for profile in usable])
        return LawFit(
            **fit_header(
                self,
                self.name,
                flops=[profile.budget for profile in usable],
                params=runs.params,
                draws=draws,
            ),
            law=Law(name="isoflop", parameters=law),
            exponents={key: interval(law[key], draws.get(key, np.empty(0)), self.level) for key in ("a", "b")},
            objective=float(sum(np.sum(profile.residuals**2) for profile in usable)),
            n_runs=len(rows),
            excluded={
                runs.ids[row]: text
                for profile in profiles
                for code, text in [explain_unusable(profile)]
                if code
                for row in profile.rows
            },
            diagnostics=tuple(diagnostics),
            minima=tuple(self._profile_record(profile, flops_per_token) for profile in profiles),
            failed_draws=failed,
        )

    def _find_minima(
        self, profiles: list[Profile], responses: list[Floats], ln_budgets: Floats, flops_per_token: FlopsPerToken
    ) -> tuple[Minima, Bools]:
        """Minima of all profiles, and the draws with a minimum in every profile.

        ``responses`` has shape (draws, runs) per profile.
        """
        parts = [profile.minima(y) for profile, y in zip(profiles, responses, strict=True)]
        ln_params = np.stack([minimum[0] for minimum in parts], axis=1)
        lowest = np.stack([minimum[1] for minimum in parts], axis=1)
        exists: Bools = np.logical_and.reduce([minimum[2] for minimum in parts])
        loss = np.exp(lowest) if self.response == "log-loss" else lowest
        return Minima(ln_params, ln_budgets - flops_per_token(ln_params), loss), exists

    def _estimate_noise(self, usable: list[Profile]) -> Noise:
        """Noise level from the residuals. Interpolated profiles have none; they use :func:`seed_noise`."""
        if self.shape == "akima":
            return Noise(1.0, 10**6)
        dof = sum(profile.dof for profile in usable)
        rss = sum(float(np.sum(profile.residuals**2)) for profile in usable)
        return Noise(float(np.sqrt(rss / dof)) if dof else 0.0, dof)

    def _check_interval(self, usable: list[Profile], noise: Noise, diagnostics: list[Diagnostic]) -> bool:
        if self.draws < 1:
            return False
        if len(usable) < 3:
            message = (
                "only two budgets have a minimum inside their grid: a line through two points fits exactly, so "
                "the exponents have no interval; add a third budget"
            )
        elif noise.dof < 1:
            message = (
                "every parabola passes through all of its runs, so their noise cannot be estimated and there are "
                "no intervals; train 5 or more sizes per budget, or a second seed"
            )
        else:
            return True
        diagnostics.append(Diagnostic(code="no-interval", message=message))
        return False

    def _draw_errors(
        self, usable: list[Profile], trunks: list[str], noise: Noise, random: np.random.Generator
    ) -> Floats:
        """Errors of all runs in all profiles, shape (draws, runs).

        All profiles share a noise model. Noise may be larger on the under-trained side, and correlated between
        runs of a trunk.
        """
        count = len(trunks)
        if not noise.dof:
            return np.empty((0, count))
        if self.shape == "akima":
            sd: Floats = np.concatenate([seed_noise(profile.y, self.response) for profile in usable])
            return np.asarray(random.standard_normal((self.draws, count)) * sd)
        if count > MAX_NOISE_MODEL_RUNS:
            return np.asarray(random.standard_normal((self.draws, count)) * noise.sigma)
        design = block_diag(*(profile.design for profile in usable))
        offset = np.concatenate([profile.u + profile.centre - profile.ln_params for profile in usable])
        residuals = np.concatenate([profile.residuals for profile in usable])
        trunk = np.unique(trunks, return_inverse=True)[1]
        ln_params = np.concatenate([profile.u + profile.centre for profile in usable])
        ln_flops = np.concatenate([np.full(len(profile.u), np.log(profile.budget)) for profile in usable])
        covariates = build_covariates(offset, ln_params, ln_flops)
        return fit_noise(residuals, design, covariates, trunk).draw(self.draws, random)

    def _draw_minima(
        self, usable: list[Profile], errors: Floats, ln_budgets: Floats, flops_per_token: FlopsPerToken
    ) -> tuple[Minima, Bools]:
        """Minima of resampled profiles, and whether a draw has a minimum near every grid."""
        responses, start = [], 0
        for profile in usable:
            profile_errors = errors[:, start : start + len(profile.rows)]
            start += len(profile.rows)
            responses.append(profile.y - profile.residuals + profile_errors)
        return self._find_minima(usable, responses, ln_budgets, flops_per_token)

    def _profile_record(self, profile: Profile, flops_per_token: FlopsPerToken) -> ProfileMinimum:
        ln_params = np.array([profile.ln_params])
        ln_tokens = float(np.log(profile.budget) - flops_per_token(ln_params)[0])
        return profile_record(profile, ln_tokens, self.response)


def _describe_loss_law(is_saturating: bool, budgets: int) -> Diagnostic:
    if is_saturating:
        return note("loss-law", "L_opt(C) is E + k C^-gamma, fitted to the lowest loss of each budget")
    reason = (
        "fewer than 4 budgets" if budgets < 4 else "the budgets do not reach far enough to see where it flattens"
    )
    return note(
        "loss-law",
        f"L_opt(C) is k C^-gamma without an irreducible term ({reason}): too low far beyond the budgets",
    )


def _report_failed_draws(failed: int, draws: int) -> Diagnostic:
    return Diagnostic(
        code="no-interval",
        message=f"{failed} of {draws} bootstrap draws had a profile without a minimum near its grid: the "
        "curvature is not resolved, so there are no intervals; widen the grids or train more seeds",
    )


def _explain_too_few_minima(profiles: list[Profile], usable: list[Profile]) -> str:
    count = "only one budget has" if usable else "no budget has"
    reasons = "".join(f"\n  {text}" for code, text in map(explain_unusable, profiles) if code)
    more = "" if len(profiles) > 2 else "; train at least three budgets"
    return f"{count} a minimum inside its grid; an exponent needs two, preferably four{more}{reasons}"
