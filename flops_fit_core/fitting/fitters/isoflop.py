"""The IsoFLOP law: N_opt, D_opt and L_opt as power laws of C through the minima of the profiles.

    ln N_opt = ln_kN + a ln C        ln D_opt = ln_kD + b ln C        L_opt = E + exp(ln_kL) C^-gamma

Approach 2 of Hoffmann et al. 2022 as one regression for the profiles of all budgets (:mod:`profile_law`). Separate
parabolas per budget are biased if the grid is wide and profiles are not symmetric in ln N (alpha and beta differ),
and their noisy curvatures leave many studies without an interval. With ``shape = "akima"``, the variant of Porian
et al. 2024 (arXiv 2406.19146): a line through the minima of interpolated profiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.diagnostics import (
    check_profiles,
    check_runs,
    explain_unusable,
    no_interval,
    note,
    report_unused_errors,
)
from flops_fit_core.fitting.fitters.base import BootstrapFitter
from flops_fit_core.fitting.fitters.interpolation import interpolate_optima
from flops_fit_core.fitting.fitters.loss_law import add_loss_scatter, estimate_loss_scatter
from flops_fit_core.fitting.fitters.minima import Estimate, add_scatter, draw_scatter, fit_laws
from flops_fit_core.fitting.fitters.profile_regression import explain_too_few_minima, regress_optima
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
from flops_fit_core.plugins.utilities import fit_header
from flops_fit_core.records import Diagnostic, Law, LawFit, Observation, ProfileMinimum


@dataclass(frozen=True)
class IsoflopFitter(BootstrapFitter):
    """Fits the IsoFLOP law."""

    response: Response = "log-loss"
    """Response of the profiles: ln L or L."""
    shape: Shape = "parabola"
    """Curve of each profile in tables and figures. With ``akima``, the law follows the minima of interpolants with
    the noise of ``seed_noise``, as in Porian et al. 2024."""
    objective: Literal["robust", "least-squares"] = "robust"
    """``robust``: least squares without gross outliers, named in a diagnostic. Ignored by ``akima``."""
    name: str = "fitters/isoflop"

    @convert_numerical_errors
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Fit the law. Raises FitError, with advice, if fewer than two budgets have a minimum in their grid."""
        runs = Runs.of(observations)
        flops_per_token = FlopsPerToken.of(runs, self.draws > 0, self.seed)
        groups = group_by_budget(runs)
        moved = move_to_budgets(runs, groups)
        response = moved if self.response == "log-loss" else np.exp(moved)
        is_log = self.response == "log-loss"
        profiles = [fit_profile(group, np.log(runs.params), response, self.shape, is_log) for group in groups]
        random = np.random.default_rng(self.seed)
        estimate = self._estimate_optima(runs, response, profiles, flops_per_token, random)
        law, draws, warnings = self._fit_laws(estimate, flops_per_token, random)
        shown = {profile.budget: profile for profile in (*profiles, *estimate.profiles)}
        profiles = [shown[profile.budget] for profile in profiles]
        used = {profile.budget for profile in estimate.profiles}
        diagnostics = [
            *check_profiles(profiles, used),
            *check_runs(runs, flops_per_token),
            *report_unused_errors(runs),
            _describe_loss_law(law["E"] > 0, len(used)),
            *estimate.warnings,
            *warnings,
        ]
        unused = {
            runs.ids[row]: explain_unusable(profile)[1]
            for profile in profiles
            if profile.budget not in used
            for row in (*profile.rows, *profile.far)
        }
        return LawFit(
            **fit_header(self, self.name, flops=sorted(used), params=runs.params, draws=draws),
            law=Law(name="isoflop", parameters=law),
            exponents={key: interval(law[key], draws.get(key, np.empty(0)), self.level) for key in ("a", "b")},
            objective=estimate.rss,
            n_runs=estimate.n_runs,
            excluded={**unused, **{runs.ids[row]: text for row, text in estimate.rejected.items()}},
            diagnostics=tuple(diagnostics),
            minima=tuple(self._profile_record(profile, flops_per_token) for profile in profiles),
            failed_draws=estimate.failed_draws,
        )

    def _estimate_optima(
        self,
        runs: Runs,
        response: Floats,
        profiles: list[Profile],
        flops_per_token: FlopsPerToken,
        random: np.random.Generator,
    ) -> Estimate:
        if self.shape != "akima":
            return regress_optima(
                runs,
                response,
                profiles,
                flops_per_token,
                is_log=self.response == "log-loss",
                is_robust=self.objective == "robust",
                draws=self.draws,
                level=self.level,
                random=random,
                seed=self.seed,
            )
        usable = [profile for profile in profiles if profile.verdict == "interior"]
        if len(usable) < 2:
            raise FitError(explain_too_few_minima(profiles, usable))
        return interpolate_optima(usable, self.response, flops_per_token, self.draws, random, self.seed)

    def _fit_laws(
        self, estimate: Estimate, flops_per_token: FlopsPerToken, random: np.random.Generator
    ) -> tuple[dict[str, float], dict[str, Floats], list[Diagnostic]]:
        """The law, its draws, and diagnostics."""
        ln_budgets = np.log([profile.budget for profile in estimate.profiles])
        weights, loss_error = estimate.weights, estimate.loss_error
        ratio, dof, warning = estimate_loss_scatter(
            ln_budgets, estimate.minima.loss, loss_error, estimate.noise_dof
        )
        spread = loss_error * np.sqrt(1 + ratio)
        law = fit_laws(ln_budgets, estimate.minima, weights, spread)
        diagnostics = [warning] if warning else []
        if estimate.no_interval:
            diagnostics.append(no_interval(estimate.no_interval))
        count = len(estimate.drawn.loss)
        draws: dict[str, Floats] = {}
        if count and not estimate.no_interval:
            drawn_flops = flops_per_token.drawn(count, self.seed)
            tau = draw_scatter(*estimate.scatter, count, random)
            drawn = add_scatter(estimate.drawn, tau, ln_budgets, drawn_flops, random)
            loss = add_loss_scatter(drawn.loss, loss_error, ratio, dof, random)
            draws = fit_laws(ln_budgets, replace(drawn, loss=loss), weights, spread, random)
        return {key: float(value[0]) for key, value in law.items()}, draws, diagnostics

    def _profile_record(self, profile: Profile, flops_per_token: FlopsPerToken) -> ProfileMinimum:
        ln_params = np.array([profile.ln_params])
        ln_tokens = float(np.log(profile.budget) - flops_per_token(ln_params)[0])
        return profile_record(profile, ln_tokens, self.response)


def _describe_loss_law(is_saturating: bool, budgets: int) -> Diagnostic:
    if not is_saturating:
        return note(
            "loss-law",
            "L_opt(C) is k C^-gamma without an irreducible term (the budgets do not reach far enough to see where "
            "it flattens): too low far beyond the budgets",
        )
    text = "L_opt(C) is E + k C^-gamma, fitted to the lowest loss of each budget"
    if budgets < 4:
        text += f"; {budgets} budgets hardly determine the irreducible term, so it depends on the prior of gamma"
    return note("loss-law", text)
