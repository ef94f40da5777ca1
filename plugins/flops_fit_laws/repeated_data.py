"""Laws of the loss for training data that repeat."""

from __future__ import annotations

from typing import Any

import numpy as np

from flops_fit_core.plugins import LossLaw, Parameter
from flops_fit_laws.dense import Chinchilla, irreducible


class Muennighoff(LossLaw):
    """Chinchilla with the effective N and D of repeated data (Muennighoff et al. 2023, equations 5 and 6).

    Repetitions of the unique tokens U lose value with scale R_D, and parameters beyond the optimal number for U
    lose value with scale R_N.
    """

    formula = "L = E + A / N'^alpha + B / D'^beta, with effective N' and D' of unique tokens U"
    source = "Muennighoff et al. 2023, arXiv 2305.16264"
    inputs = ("params", "tokens", "unique_tokens")
    parameters = (
        *Chinchilla.parameters,
        Parameter("R_D", (5.0, 20.0), low=0.05, high=1e4),
        Parameter("R_N", (3.0, 20.0), low=0.05, high=1e4),
    )

    def loss(
        self,
        params: Any,
        tokens: Any,
        unique_tokens: Any,
        *,
        E: Any,
        A: Any,
        alpha: Any,
        B: Any,
        beta: Any,
        R_D: Any,
        R_N: Any,
    ) -> Any:
        ln_unique = _smaller(np.log(unique_tokens), np.log(tokens))
        ln_g = (np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)
        # N of the compute-optimal model for the unique tokens: parameters beyond it count less.
        base = _smaller(np.log(params), ln_g + beta / alpha * (ln_unique + ln_g))
        ln_n = base + _ln_effective(np.log(params) - base, R_N)
        ln_d = ln_unique + _ln_effective(np.log(tokens) - ln_unique, R_D)
        return E + A * np.exp(-alpha * ln_n) + B * np.exp(-beta * ln_d)


class Bounded(LossLaw):
    """L = E + (L_0 - E) h / (1 + h), h = a / N^alpha + b / D^beta + c N^gamma / U^delta (arXiv 2605.09189).

    The loss stays between E and L_0; the last term is overfitting to the unique tokens U.
    """

    formula = "L = E + (L_0 - E) h / (1 + h), h = a / N^alpha + b / D^beta + c N^gamma / U^delta"
    source = "arXiv 2605.09189"
    inputs = ("params", "tokens", "unique_tokens")
    parameters = (
        irreducible,
        Parameter("L_0", (2.0, 4.0), low=1e-3, high=1e3, of_loss=True),
        Parameter("a", (0.03, 0.2), low=1e-9, high=1e4, over={"params": "alpha"}),
        Parameter("alpha", (0.2, 0.5), low=0.005, high=3.0),
        Parameter("b", (0.03, 0.2), low=1e-9, high=1e4, over={"tokens": "beta"}),
        Parameter("beta", (0.2, 0.5), low=0.005, high=3.0),
        Parameter("c", (0.003, 0.05), low=1e-12, high=1e4, over={"params": "-gamma", "unique_tokens": "delta"}),
        Parameter("gamma", (0.2, 0.8), low=0.001, high=5.0),
        Parameter("delta", (0.2, 0.8), low=0.001, high=5.0),
    )

    def loss(
        self,
        params: Any,
        tokens: Any,
        unique_tokens: Any,
        *,
        E: Any,
        L_0: Any,
        a: Any,
        alpha: Any,
        b: Any,
        beta: Any,
        c: Any,
        gamma: Any,
        delta: Any,
    ) -> Any:
        h = a * params**-alpha + b * tokens**-beta + c * params**gamma * unique_tokens**-delta
        return E + (L_0 - E) * h / (1 + h)


def _smaller(first: Any, second: Any) -> Any:
    """The smaller by real part; numpy's minimum of complex numbers would compare imaginary parts of equals."""
    return np.where(np.real(first) < np.real(second), first, second)


def _ln_effective(ln_ratio: Any, r: Any) -> Any:
    """Ln (1 + R (1 - exp(-(ratio - 1) / R))): the effective ratio if repetition loses value with scale R."""
    return np.log1p(-r * np.expm1(-np.expm1(ln_ratio) / r))
