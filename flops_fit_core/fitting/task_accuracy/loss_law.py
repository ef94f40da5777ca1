"""Step 1: L = E + A / N^alpha + B / D^beta, by robust least squares on ln L with a prior on the exponents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.task_accuracy.penalised import REFIT_STEPS, ParameterLimits, minimise
from flops_fit_core.plugins.registry.law_index import find_law

EXPONENT_PRIOR = (float(np.log(0.35)), 0.5)
"""Mean and standard deviation of ln alpha and of ln beta."""
_HUBER = 2.0
"""Residuals above this many standard deviations lose weight."""
_MAD = 1.4826
"""Standard deviation of normal errors divided by their median absolute deviation."""
_ROUNDS = 10
_MIN_NOISE = 1e-5


def chinchilla_loss(law: Mapping[str, Floats], ln_params: Floats, ln_tokens: Floats) -> Floats:
    """L of shape (fits, n), from parameters of shape (fits, 1)."""
    loss: Floats = find_law("chinchilla").loss(np.exp(ln_params), np.exp(ln_tokens), **law)
    return loss


@dataclass(frozen=True)
class LossLaw:
    """Parameters theta = (ln E, ln A', ln alpha, ln B', ln beta); A' and B' are the terms at mean ln N, ln D."""

    theta: Floats
    """Shape (5,)."""
    center: tuple[float, float]
    """Mean ln N and mean ln D of the fitted runs."""
    noise: float
    """Standard deviation of ln L."""
    residuals: Floats
    """Of ln L, shape (n,)."""
    weights: Floats
    """Robust weights, shape (n,)."""
    limits: ParameterLimits

    @classmethod
    def fit(cls, params: Floats, tokens: Floats, loss: Floats) -> LossLaw:
        """Iteratively reweighted least squares on ln L."""
        center = float(np.log(params).mean()), float(np.log(tokens).mean())
        u, v, target = np.log(params) - center[0], np.log(tokens) - center[1], np.log(loss)
        limits = _limits(float(target.min()))
        start, weights, noise = _starts(target), np.ones(len(target)), 0.01
        for _ in range(_ROUNDS):
            solved = minimise(lambda theta: evaluate(theta, u, v), start, target, limits, weights, noise)
            theta = solved.theta[np.argmin(solved.value)]
            residuals = target - evaluate(theta[None], u, v)[0][0]
            dof = max(len(target) - 5, 1)
            noise = max(float(np.sqrt((weights * residuals**2).sum() / dof)), _MIN_NOISE)
            scale = max(_MAD * float(np.median(np.abs(residuals))) * np.sqrt(len(target) / dof), _MIN_NOISE)
            weights = np.minimum(1.0, _HUBER * scale / np.maximum(np.abs(residuals), 1e-300))
            start = np.concatenate([theta[None], start[:4]])
        return cls(theta, center, noise, residuals, weights, limits)

    def __call__(self, params: Floats, tokens: Floats) -> Floats:
        """L at N and D, both of shape (n,)."""
        loss: Floats = np.exp(evaluate(self.theta[None], *self.centered(params, tokens))[0][0])
        return loss

    def centered(self, params: Floats, tokens: Floats) -> tuple[Floats, Floats]:
        return np.log(params) - self.center[0], np.log(tokens) - self.center[1]

    def refit(self, params: Floats, tokens: Floats, ln_loss: Floats, random: np.random.Generator) -> Floats:
        """Theta of each row of ``ln_loss`` (fits, n), from this law, with means drawn from the priors."""
        u, v = self.centered(params, tokens)
        start = np.repeat(self.theta[None], len(ln_loss), axis=0)
        solved = minimise(
            lambda theta: evaluate(theta, u, v),
            start,
            ln_loss,
            self.limits,
            self.weights,
            self.noise,
            REFIT_STEPS,
            self.limits.draw_means(len(ln_loss), random),
        )
        return solved.theta

    def parameters(self, theta: Floats) -> dict[str, Floats]:
        """E, A, alpha, B and beta of rows theta (fits, 5), each of shape (fits,)."""
        alpha, beta = np.exp(theta[:, 2]), np.exp(theta[:, 4])
        return {
            "E": np.exp(theta[:, 0]),
            "A": np.exp(theta[:, 1] + alpha * self.center[0]),
            "alpha": alpha,
            "B": np.exp(theta[:, 3] + beta * self.center[1]),
            "beta": beta,
        }


def evaluate(theta: Floats, u: Floats, v: Floats) -> tuple[Floats, Floats]:
    """Ln L (fits, n) and its derivatives (fits, n, 5), at ``u`` = ln N and ``v`` = ln D minus their means."""
    alpha, beta = np.exp(theta[:, 2:3]), np.exp(theta[:, 4:5])
    irreducible = np.exp(theta[:, :1])
    a, b = np.exp(theta[:, 1:2] - alpha * u), np.exp(theta[:, 3:4] - beta * v)
    loss = irreducible + a + b
    columns = (irreducible / loss, a / loss, -alpha * u * a / loss, b / loss, -beta * v * b / loss)
    return np.log(loss), np.stack(columns, axis=2)


def _limits(lowest: float) -> ParameterLimits:
    """``lowest``: smallest ln L of the runs, above which E cannot lie."""
    mean, sd = EXPONENT_PRIOR
    return ParameterLimits(
        low=np.array([lowest - 20, lowest - 25, np.log(0.01), lowest - 25, np.log(0.01)]),
        high=np.array([lowest, lowest + 10, np.log(4.0), lowest + 10, np.log(4.0)]),
        mean=np.array([0.0, 0.0, mean, 0.0, mean]),
        sd=np.array([np.inf, np.inf, sd, np.inf, sd]),
    )


def _starts(target: Floats) -> Floats:
    lowest, mean = float(np.exp(target.min())), float(np.exp(target.mean()))
    rows = []
    for share, alpha, beta in product((0.3, 0.6, 0.85), (0.2, 0.35, 0.7), (0.2, 0.35, 0.7)):
        term = np.log(max(mean - share * lowest, 1e-9 * mean) / 2)
        rows.append((np.log(share * lowest), term, np.log(alpha), term, np.log(beta)))
    return np.array(rows)
