"""The minima of IsoFLOP profiles: their variances, their scatter around a line, and the laws through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats
from flops_fit_core.fitting.distributions import f_tail
from flops_fit_core.fitting.fitters.loss_law import SCATTER_CHANCE, fit_loss_law
from flops_fit_core.fitting.fitters.profiles import Profile, Response
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.power_law import fit_line
from flops_fit_core.fitting.uncertainty.bootstrap import draw_scale
from flops_fit_core.records import Diagnostic


@dataclass(frozen=True)
class Noise:
    """Noise of runs about their profiles: standard deviation of the response, and its degrees of freedom."""

    sigma: float
    dof: int


@dataclass(frozen=True)
class Minima:
    """Ln N, ln D and L at the minimum of every profile; the last axis is the profile."""

    ln_params: Floats
    ln_tokens: Floats
    loss: Floats

    def take(self, mask: Bools) -> Minima:
        """Select draws."""
        return Minima(self.ln_params[mask], self.ln_tokens[mask], self.loss[mask])


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Optima of the budgets that a law uses, and draws of them."""

    profiles: tuple[Profile, ...]
    minima: Minima
    """One row."""
    drawn: Minima
    """One row per draw, without scatter of the budgets; no rows without an interval."""
    weights: Floats
    """Weights of the budgets in a line through the optima."""
    loss_error: Floats
    """Relative standard errors of the lowest losses."""
    scatter: tuple[float, int]
    """Standard deviation of ln N_opt about the line in excess of noise, and its degrees of freedom."""
    noise_dof: int
    """Degrees of freedom of ``loss_error``."""
    n_runs: int
    """Runs that the law uses."""
    rss: float = 0.0
    """Sum of squared residuals."""
    rejected: dict[int, str] = field(default_factory=dict)
    """Row of a run -> the reason why the law does not use it."""
    warnings: tuple[Diagnostic, ...] = ()
    failed_draws: int = 0
    no_interval: str = ""
    """Why there is no interval; empty if there is one."""


def seed_noise(y: Floats, response: Response) -> Floats:
    """Standard deviation between seeds assumed by Porian et al. 2024: .002 nats up to a loss of 3, .05 from 7."""
    loss = np.exp(y) if response == "log-loss" else y
    sd: Floats = np.exp(np.interp(loss, [3.0, 7.0], np.log([0.002, 0.05]))).astype(np.float64)
    return sd / loss if response == "log-loss" else sd


def minimum_variances(drawn: Minima, usable: Sequence[Profile]) -> Floats:
    """Variance of ln N at each minimum over draws, at least (step between sizes / 3)^2.

    The floor follows Porian et al. 2024: the minimum of an interpolant jumps from one size to the next.
    """
    floor = np.array([profile.ln_range / max(len(np.unique(profile.u)) - 1, 1) / 3 for profile in usable]) ** 2
    return np.maximum(drawn.ln_params.var(axis=0), floor) if len(drawn.ln_params) > 1 else floor


def median_draw(drawn: Minima, default: Minima) -> Minima:
    """The median draw per budget, which is more stable than the minimum of the interpolant."""
    if not len(drawn.ln_params):
        return default
    return Minima(*(np.median(draws, axis=0)[None] for draws in (drawn.ln_params, drawn.ln_tokens, drawn.loss)))


def draw_scatter(tau: float, dof: int, draws: int, random: np.random.Generator) -> Floats:
    """Standard deviation of the scatter per draw, with the uncertainty that ``dof`` degrees of freedom leave."""
    return tau * draw_scale(dof, draws, random) if tau else np.zeros(draws)


def add_scatter(
    drawn: Minima, tau: Floats, ln_budgets: Floats, flops_per_token: FlopsPerToken, random: np.random.Generator
) -> Minima:
    """Add scatter of standard deviation ``tau`` (draws,) in ln N to the drawn minima."""
    if not tau.any():
        return drawn
    ln_params = drawn.ln_params + tau[:, None] * random.standard_normal(drawn.ln_params.shape)
    return Minima(ln_params, ln_budgets - flops_per_token(ln_params), drawn.loss)


def fit_laws(
    ln_budgets: Floats,
    minima: Minima,
    weights: Floats,
    loss_error: Floats,
    random: np.random.Generator | None = None,
) -> dict[str, Floats]:
    """Parameters of the law, one entry per row of ``minima``. ``loss_error`` and ``random`` are those of
    :func:`fit_loss_law`."""
    ln_kn, a = fit_line(ln_budgets, minima.ln_params, weights)
    ln_kd, b = fit_line(ln_budgets, minima.ln_tokens, weights)
    loss = fit_loss_law(ln_budgets, minima.loss, loss_error, random)
    return {"ln_kN": ln_kn, "a": a, "ln_kD": ln_kd, "b": b, **loss}


def estimate_scatter(
    ln_budgets: Floats, ln_params: Floats, weights: Floats, noise: Noise
) -> tuple[float, int, Diagnostic | None]:
    """Scatter of the minima about their line in excess of the runs' noise: (sd of ln N, dof, warning).

    Zero unless significant by an F test; then estimated by the method of moments, as in a random-effects
    meta-analysis (DerSimonian and Laird 1986).
    """
    dof = len(ln_budgets) - 2
    if dof < 1 or noise.sigma == 0:
        return 0.0, 0, None
    intercept, slope = fit_line(ln_budgets, ln_params, weights)
    precision = weights / noise.sigma**2
    chi_square = float(precision @ (ln_params[0] - intercept[0] - slope[0] * ln_budgets) ** 2)
    if f_tail(chi_square / dof, dof, noise.dof) > SCATTER_CHANCE:
        return 0.0, 0, None
    design = np.stack([np.ones_like(ln_budgets), ln_budgets], axis=1)
    covariance = np.linalg.inv(design.T @ (precision[:, None] * design))
    denominator = precision.sum() - np.trace(covariance @ (design.T @ ((precision**2)[:, None] * design)))
    tau = float(np.sqrt(max(0.0, (chi_square - dof) / denominator)))
    message = (
        f"the minima lie further from a straight line in ln C than the runs' noise explains (an extra {tau:.2g} "
        "in ln N, added to the intervals); check for budgets tuned differently, or N_opt may not be a power law"
    )
    return tau, dof, Diagnostic(code="scatter", message=message)
