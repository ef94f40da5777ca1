"""The prior of the regression of IsoFLOP profiles.

Theta holds the lowest losses L_k of the budgets, ln c, n0, a, gamma, ln p, ln q, ln k (:mod:`profile_law`). Few
runs determine the skew p, q, the power k and the decay gamma, so these have weak priors. Three further relations
are exact on L = E + A (N^-alpha + R D^-beta)^k, which for k = 1 is the sum of two power laws:

    a = q / (p + q)        gamma = p q / (p + q)        c = K p q / k    with    L_k = E + K exp(-gamma z)

The prior holds each with a slack. Real losses follow no law exactly, and C / D need not grow as N: with C / D ~
N^phi, a is q / (p + phi q), which phi = .8 moves by .05. The L_k themselves stay free.

* The first relation gives a the prior .5 with standard deviation .2, from those of p and q and from the slack. If
  the runs determine a to .03, it moves a by a fortieth of its distance from .5.
* The third compares the curvature of the profiles with the fall of the loss from budget to budget, which is well
  determined. If more compute lowers the loss, N and D matter, and the profiles cannot be flat. Without this
  relation, draws of noisy runs include flat profiles, and their optimum is anywhere.
"""

from __future__ import annotations

import numpy as np

from flops_fit_core.fitting.data import Floats

EXPONENT_PRIOR = (float(np.log(0.35)), 0.5)
"""Mean and standard deviation of ln p and ln q: loss exponents of language models lie between .15 and .6."""
POWER_PRIOR = (float(np.log(0.5)), 0.7)
"""Mean and standard deviation of ln k, between the sum of two power laws (k = 1) and a sharper transition."""
DECAY_MEAN = 0.35 / 2
"""Gamma of two exponents of .35."""
SLOPE_SLACK = 0.1
"""Standard deviation of a - q / (p + q)."""
DECAY_SLACK = 0.05
"""Standard deviation of gamma - p q / (p + q)."""
CURVATURE_SLACK = 0.5
"""Standard deviation of ln c - ln (K p q / k)."""
CURVATURE_ERROR = float(np.sqrt(2 * EXPONENT_PRIOR[1] ** 2 + POWER_PRIOR[1] ** 2 + CURVATURE_SLACK**2))
"""Standard deviation of ln c under the prior, for a given fall of the loss."""
SHAPE_ROWS = 4
"""Rows of p, q, k and gamma, which come first."""
PRIOR_ROWS = SHAPE_ROWS + 2
SHAPE_MEANS = np.array([DECAY_MEAN, EXPONENT_PRIOR[0], EXPONENT_PRIOR[0], POWER_PRIOR[0]])
"""Prior means of gamma, ln p, ln q, ln k."""
_SMALLEST_FALL = 0.01
"""Least K, relative to the loss: noise can make the loss rise with C."""


def evaluate_prior(theta: Floats, budget_z: Floats) -> tuple[Floats, Floats]:
    """Standardised prior errors (..., 6) and their Jacobian (..., 6, budgets + 7) at theta (..., budgets + 7)."""
    budgets = len(budget_z)
    ln_c, _, a, gamma, ln_p, ln_q, ln_k = np.moveaxis(theta[..., budgets:], -1, 0)
    p, q = np.exp(ln_p), np.exp(ln_q)
    share, decay = q / (p + q), p * q / (p + q)
    ln_fall, by_lowest, by_decay = _ln_fall(theta[..., :budgets], decay, budget_z)
    values = np.stack(
        [
            (gamma - decay) / DECAY_SLACK,
            (ln_p - EXPONENT_PRIOR[0]) / EXPONENT_PRIOR[1],
            (ln_q - EXPONENT_PRIOR[0]) / EXPONENT_PRIOR[1],
            (ln_k - POWER_PRIOR[0]) / POWER_PRIOR[1],
            (a - share) / SLOPE_SLACK,
            (ln_c - ln_fall - ln_p - ln_q + ln_k) / CURVATURE_SLACK,
        ],
        axis=-1,
    )
    jacobian = np.zeros((*values.shape, theta.shape[-1]))
    by_p, by_q = decay * share, decay * (1 - share)
    jacobian[..., 0, budgets + 3] = 1 / DECAY_SLACK
    jacobian[..., 0, budgets + 4], jacobian[..., 0, budgets + 5] = -by_p / DECAY_SLACK, -by_q / DECAY_SLACK
    jacobian[..., 1, budgets + 4] = jacobian[..., 2, budgets + 5] = 1 / EXPONENT_PRIOR[1]
    jacobian[..., 3, budgets + 6] = 1 / POWER_PRIOR[1]
    jacobian[..., 4, budgets + 2] = 1 / SLOPE_SLACK
    jacobian[..., 4, budgets + 4] = share * (1 - share) / SLOPE_SLACK
    jacobian[..., 4, budgets + 5] = -share * (1 - share) / SLOPE_SLACK
    jacobian[..., 5, :budgets] = -by_lowest / CURVATURE_SLACK
    jacobian[..., 5, budgets] = jacobian[..., 5, budgets + 6] = 1 / CURVATURE_SLACK
    jacobian[..., 5, budgets + 4] = (-1 - by_decay * by_p) / CURVATURE_SLACK
    jacobian[..., 5, budgets + 5] = (-1 - by_decay * by_q) / CURVATURE_SLACK
    return values, jacobian


def expected_curvature(lowest: Floats, budget_z: Floats) -> float:
    """The curvature c at the prior means of p, q and k, for lowest losses (budgets,)."""
    ln_fall = _ln_fall(lowest, np.asarray(DECAY_MEAN), budget_z)[0]
    return float(np.exp(ln_fall + 2 * EXPONENT_PRIOR[0] - POWER_PRIOR[0]))


def _ln_fall(lowest: Floats, decay: Floats, budget_z: Floats) -> tuple[Floats, Floats, Floats]:
    """Ln K of the least-squares line through L_k over exp(-decay z), and its derivatives by L_k and by decay."""
    power = np.exp(-decay[..., None] * budget_z)
    by_decay = -budget_z * power
    power = power - power.mean(axis=-1, keepdims=True)
    by_decay = by_decay - by_decay.mean(axis=-1, keepdims=True)
    square = (power**2).sum(axis=-1)
    fall = (power * lowest).sum(axis=-1) / square
    change = ((by_decay * lowest).sum(axis=-1) - 2 * fall * (power * by_decay).sum(axis=-1)) / square
    least = _SMALLEST_FALL * np.abs(lowest).mean(axis=-1)
    is_falling = fall > least
    safe = np.where(is_falling, fall, np.maximum(least, 1e-300))
    slopes = np.where(is_falling[..., None], power / square[..., None] / safe[..., None], 0.0)
    return np.log(safe), slopes, np.where(is_falling, change / safe, 0.0)
