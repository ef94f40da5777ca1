"""Simulated studies on surfaces with an optimum in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core import Observation


@dataclass(frozen=True)
class Surface:
    """L = E + A / N^alpha + B / D^beta with C = factor N^phi D (6 N D by default)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    factor: float = 6.0
    phi: float = 1.0

    @property
    def a(self) -> float:
        return self.beta / (self.alpha + self.phi * self.beta)

    def loss(self, params, tokens):
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    def tokens(self, flops, params):
        return flops / (self.factor * params**self.phi)

    def n_opt(self, flops):
        """Where the derivative of the loss in ln N at fixed C is zero."""
        ratio = self.alpha * self.A / (self.phi * self.beta * self.B)
        return (ratio * (flops / self.factor) ** self.beta) ** (1 / (self.alpha + self.phi * self.beta))

    def d_opt(self, flops):
        return self.tokens(flops, self.n_opt(flops))


CHINCHILLA = Surface(1.69, 406.4, 410.7, 0.34, 0.28)
LOPSIDED = Surface(1.69, 406.4, 410.7, 0.465, 0.155)


def study(
    surface: Surface,
    budgets: Sequence[float],
    offsets: Sequence[float],
    *,
    sigma: float = 0.0,
    miss: float = 0.0,
    seed: int = 0,
) -> list[Observation]:
    """Runs at N = N_opt x offset of each budget; C misses its budget by up to ``miss``; noise on ln L."""
    random = np.random.default_rng(seed)
    out = []
    for budget in budgets:
        for number, offset in enumerate(offsets):
            flops = budget * (1 + miss * random.uniform(-1, 1))
            params = surface.n_opt(budget) * offset
            tokens = surface.tokens(flops, params)
            loss = surface.loss(params, tokens) * np.exp(sigma * random.standard_normal())
            out.append(
                Observation(
                    id=f"{budget:.1e}/{number}",
                    params=params,
                    tokens=tokens,
                    flops=flops,
                    loss=loss,
                    budget=budget,
                )
            )
    return out
