"""The law of the lowest losses: L_opt(C) = E + K C^-gamma, with a weak prior on gamma.

Few budgets hardly determine E, K and gamma together, so ln gamma has a prior around .35 / 2, the value of two loss
exponents of .35. A draw shifts the centre of the prior at random and repeats the fit (randomise then optimise,
Bardsley et al. 2014), so that draws also vary along directions that only the prior determines.
"""

from __future__ import annotations

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.distributions import f_tail
from flops_fit_core.fitting.fitters.profile_prior import DECAY_MEAN, EXPONENT_PRIOR
from flops_fit_core.fitting.uncertainty.bootstrap import draw_scale
from flops_fit_core.records import Diagnostic

SCATTER_CHANCE = 0.02
"""Chance of a message about scatter if the optima follow a line, or the lowest losses their law."""

_LN_GAMMAS = np.log(np.geomspace(0.01, 2.0, 54))
_PRIOR_SD = EXPONENT_PRIOR[1]
_GOLDEN = (np.sqrt(5) - 1) / 2
_SMALLEST_ERROR = 1e-9
_MAX_SCATTER = 3.0
"""Largest |ln| of scatter. With one degree of freedom its scale has no finite mean, and losses would overflow."""


def fit_loss_law(
    ln_budgets: Floats, loss: Floats, relative_error: Floats, random: np.random.Generator | None = None
) -> dict[str, Floats]:
    """E, ln_kL and gamma per draw for ``loss`` (draws, budgets) with relative standard errors (budgets,).

    ``random`` shifts the prior of every draw; without it, the prior keeps its centre. E and K are not negative.
    """
    centre = ln_budgets.mean()
    x, weight = ln_budgets - centre, 1 / np.maximum(relative_error, _SMALLEST_ERROR)
    shift = np.zeros(len(loss)) if random is None else random.standard_normal(len(loss))

    def misfit(ln_gamma: Floats) -> Floats:
        prior = (ln_gamma - np.log(DECAY_MEAN)) / _PRIOR_SD - shift
        total: Floats = _project(x, loss, np.exp(ln_gamma), weight)[2] + prior**2
        return total

    by_gamma = np.stack([misfit(np.full(len(loss), ln_gamma)) for ln_gamma in _LN_GAMMAS])
    best = np.clip(np.argmin(by_gamma, axis=0), 1, len(_LN_GAMMAS) - 2)
    low, high = _LN_GAMMAS[best - 1], _LN_GAMMAS[best + 1]
    for _ in range(36):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        is_smaller = misfit(left) < misfit(right)
        low, high = np.where(is_smaller, low, left), np.where(is_smaller, right, high)
    gamma = np.exp((low + high) / 2)
    e, k, _ = _project(x, loss, gamma, weight)
    return {"E": e, "ln_kL": np.log(np.maximum(k, 1e-300)) + gamma * centre, "gamma": gamma}


def estimate_loss_scatter(
    ln_budgets: Floats, loss: Floats, relative_error: Floats, noise_dof: int
) -> tuple[float, int, Diagnostic | None]:
    """Scatter of ``loss`` (1, budgets) about the law in excess of its errors: (ratio, dof, warning).

    The ratio is the variance about the law divided by that of the errors, less 1. It is 0 unless significant by an
    F test.
    """
    dof = len(ln_budgets) - 3
    if dof < 1 or not (relative_error > _SMALLEST_ERROR).all():
        return 0.0, 0, None
    law = fit_loss_law(ln_budgets, loss, relative_error)
    misfit = np.log((law["E"] + np.exp(law["ln_kL"] - law["gamma"] * ln_budgets)) / loss[0])
    mean_square = float(np.sum((misfit / relative_error) ** 2)) / dof
    if f_tail(mean_square, dof, noise_dof) > SCATTER_CHANCE:
        return 0.0, 0, None
    error = float(np.sqrt(np.mean(misfit**2)))
    message = (
        "the lowest losses of the budgets lie further from E + k C^-gamma than the runs' noise explains (by "
        f"{numbers.share(error, 2)}, added to the intervals of L_opt); check for budgets tuned differently"
    )
    return max(0.0, mean_square - 1), dof, Diagnostic(code="loss-scatter", message=message)


def add_loss_scatter(
    drawn: Floats, relative_error: Floats, ratio: float, dof: int, random: np.random.Generator
) -> Floats:
    """Add scatter about the law to drawn lowest losses (draws, budgets)."""
    if not ratio:
        return drawn
    scale = np.sqrt(ratio) * draw_scale(dof, len(drawn), random)[:, None]
    exponent = scale * relative_error * random.standard_normal(drawn.shape)
    scattered: Floats = drawn * np.exp(np.clip(exponent, -_MAX_SCATTER, _MAX_SCATTER))
    return scattered


def _project(x: Floats, loss: Floats, gamma: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Best E, K >= 0 per gamma, and the sum of squared standardised errors."""
    constant = weight / loss
    power = np.exp(-gamma[:, None] * x) * constant
    aa, ab, bb = (constant**2).sum(1), (constant * power).sum(1), (power**2).sum(1)
    a, b = (constant * weight).sum(1), (power * weight).sum(1)
    determinant = aa * bb - ab**2
    safe = np.where(determinant > 1e-14 * aa * bb, determinant, np.inf)
    e, k = (a * bb - b * ab) / safe, (b * aa - a * ab) / safe
    e, k = np.where(k < 0, a / aa, e), np.where(e < 0, b / bb, k)
    e, k = np.maximum(e, 0), np.maximum(k, 0)
    return e, k, ((weight - e[:, None] * constant - k[:, None] * power) ** 2).sum(1)
