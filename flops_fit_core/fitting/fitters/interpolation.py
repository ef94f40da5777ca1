"""Optima from interpolated profiles (Porian et al. 2024, arXiv 2406.19146, section 3).

Every budget has an Akima interpolant in ln N. Its minimum has the variance of redrawn losses, with the seed noise
that the paper assumes, and a weighted line through the minima is the law of the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats
from flops_fit_core.fitting.fitters.minima import (
    Estimate,
    Minima,
    Noise,
    estimate_scatter,
    median_draw,
    minimum_variances,
    seed_noise,
)
from flops_fit_core.fitting.fitters.profiles import Profile, Response
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken

MAX_FAILED_SHARE = 0.01
"""Above this share of draws without a minimum near a grid, there is no interval."""
_KNOWN = 10**6
"""Degrees of freedom of a noise level that is assumed, not estimated."""


def interpolate_optima(
    profiles: Sequence[Profile],
    response: Response,
    flops_per_token: FlopsPerToken,
    draws: int,
    random: np.random.Generator,
    seed: int,
) -> Estimate:
    """Optima of budgets with an interior minimum, and draws of them."""
    ln_budgets = np.log([profile.budget for profile in profiles])
    minima, _ = _find_minima(
        profiles, [profile.y[None] for profile in profiles], ln_budgets, flops_per_token, response
    )
    noise = [seed_noise(profile.y, response) for profile in profiles]
    redrawn = [
        profile.y + random.standard_normal((draws, len(profile.y))) * sd
        for profile, sd in zip(profiles, noise, strict=True)
    ]
    drawn_flops = flops_per_token.drawn(draws, seed)
    drawn, exists = _find_minima(profiles, redrawn, ln_budgets, drawn_flops, response)
    weights = 1 / minimum_variances(drawn, profiles)
    minima = median_draw(drawn, minima)
    tau, dof, warning = estimate_scatter(ln_budgets, minima.ln_params, weights, Noise(1.0, _KNOWN))
    failed = int(draws - exists.sum())
    reason = ""
    if failed > MAX_FAILED_SHARE * draws:
        reason = (
            f"{failed} of {draws} draws had a profile without a minimum near its grid: the curvature is not "
            "resolved; widen the grids or train more seeds"
        )
    loss_error = drawn.loss.std(axis=0) / minima.loss[0] if draws > 1 else np.full(len(ln_budgets), 1e-3)
    return Estimate(
        profiles=tuple(profiles),
        minima=minima,
        drawn=drawn.take(exists),
        weights=weights,
        loss_error=loss_error,
        noise_dof=_KNOWN,
        scatter=(tau, dof),
        n_runs=sum(len(profile.rows) for profile in profiles),
        warnings=(warning,) if warning else (),
        failed_draws=failed,
        no_interval=reason,
    )


def _find_minima(
    profiles: Sequence[Profile],
    responses: Sequence[Floats],
    ln_budgets: Floats,
    flops_per_token: FlopsPerToken,
    response: Response,
) -> tuple[Minima, Bools]:
    """Minima of all profiles for responses (draws, runs) of each, and the draws with a minimum in all of them."""
    parts = [profile.minima(y) for profile, y in zip(profiles, responses, strict=True)]
    ln_params = np.stack([minimum[0] for minimum in parts], axis=1)
    lowest = np.stack([minimum[1] for minimum in parts], axis=1)
    exists: Bools = np.logical_and.reduce([minimum[2] for minimum in parts])
    loss = np.exp(lowest) if response == "log-loss" else lowest
    return Minima(ln_params, ln_budgets - flops_per_token(ln_params), loss), exists
