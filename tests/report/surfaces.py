"""Runs on Chinchilla's surface, written down without the project's own planner or trainer."""

from __future__ import annotations

import math
import random

from flops_fit_core import Interval, Observation, Optimum

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658


def loss(params: float, tokens: float) -> float:
    return E + A / params**ALPHA + B / tokens**BETA


def best_params(flops: float) -> float:
    """Hoffmann et al. 2022, equation 4."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return g * (flops / 6) ** (BETA / (ALPHA + BETA))


def runs(budgets, sizes=7, *, noise=0.0, shift=1.0, step=1.6) -> list[Observation]:
    """IsoFLOP runs with 6 N D = C, sizes around ``shift`` times the true optimum."""
    found = []
    for budget in budgets:
        for k in range(sizes):
            params = best_params(budget) * shift * step ** (k - (sizes - 1) / 2)
            tokens = budget / (6 * params)
            z = random.Random(f"{budget} {k}").gauss(0, 1)
            found.append(
                Observation(
                    id=f"{budget:.3e} {k}",
                    params=params,
                    tokens=tokens,
                    flops=budget,
                    budget=budget,
                    loss=loss(params, tokens) * math.exp(noise * z),
                    seed=0,
                )
            )
    return found


def true_optimum(flops: float, spread: float = 1.2) -> Optimum:
    params = best_params(flops)
    tokens = flops / (6 * params)
    at = loss(params, tokens)
    return Optimum(
        flops=flops,
        params=Interval(value=params, low=params / spread, high=params * spread),
        tokens=Interval(value=tokens, low=tokens / spread, high=tokens * spread),
        loss=Interval(value=at, low=at * 0.99, high=at * 1.01),
    )
