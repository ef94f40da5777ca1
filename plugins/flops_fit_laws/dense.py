"""Laws of the loss of dense models by N and D."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flops_fit_core.plugins import LossLaw, Parameter, log_sum_exp

Floats = NDArray[np.float64]

EXPONENT_PRIOR = (float(np.log(0.35)), 0.5)
"""ln alpha and ln beta ~ N(ln 0.35, 0.5^2): published exponents of language models lie between 0.2 and 0.7."""
K_PRIOR = (0.0, 0.5)
"""ln k ~ N(0, 0.5^2): chinchilla, k = 1, unless the runs contradict it."""

irreducible = Parameter("E", (0.3, 0.7), scale="linear", low=0.0, of_loss=True)


def _exponent(name: str, prior: tuple[float, float] | None = EXPONENT_PRIOR) -> Parameter:
    return Parameter(name, (0.2, 0.5), low=0.005, high=3.0, prior=prior)


def _term(name: str, **over: str) -> Parameter:
    return Parameter(name, (0.1, 0.4), low=1e-7, high=1e7, over=over, of_loss=True)


class Chinchilla(LossLaw):
    """L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2)."""

    formula = "L = E + A / N^alpha + B / D^beta"
    source = "Hoffmann et al. 2022, arXiv 2203.15556"
    parameters = (
        irreducible,
        _term("A", params="alpha"),
        _exponent("alpha"),
        _term("B", tokens="beta"),
        _exponent("beta"),
    )

    def loss(self, params: Any, tokens: Any, *, E: Any, A: Any, alpha: Any, B: Any, beta: Any) -> Any:
        return E + A * params**-alpha + B * tokens**-beta

    def gradient(
        self, params: Floats, tokens: Floats, *, E: Floats, A: Floats, alpha: Floats, B: Floats, beta: Floats
    ) -> Mapping[str, Floats]:
        n, d = params**-alpha, tokens**-beta
        return {
            "E": np.ones_like(n),
            "A": n,
            "alpha": -A * n * np.log(params),
            "B": d,
            "beta": -B * d * np.log(tokens),
        }


class Tied(LossLaw):
    """L = E + A / N^alpha + B / D^alpha: chinchilla with equal exponents.

    The form of Gadre et al. 2024 (equation 4), in which the loss depends on C and on D / N.
    """

    formula = "L = E + A / N^alpha + B / D^alpha"
    source = "Gadre et al. 2024, arXiv 2403.08540"
    parameters = (irreducible, _term("A", params="alpha"), _term("B", tokens="alpha"), _exponent("alpha"))

    def loss(self, params: Any, tokens: Any, *, E: Any, A: Any, B: Any, alpha: Any) -> Any:
        return E + A * params**-alpha + B * tokens**-alpha

    def gradient(
        self, params: Floats, tokens: Floats, *, E: Floats, A: Floats, B: Floats, alpha: Floats
    ) -> Mapping[str, Floats]:
        n, d = params**-alpha, tokens**-alpha
        return {
            "E": np.ones_like(n),
            "A": n,
            "B": d,
            "alpha": -A * n * np.log(params) - B * d * np.log(tokens),
        }


class Skaling(LossLaw):
    """L = E + ((A / N^alpha)^(1/k) + (B / D^beta)^(1/k))^k; chinchilla for k = 1.

    The form E + A' (N^-alpha' + R D^-beta')^k with A' = A, R = (B / A)^(1/k), and the exponents of the terms
    alpha = k alpha' and beta = k beta'.
    """

    formula = "L = E + ((A / N^alpha)^(1/k) + (B / D^beta)^(1/k))^k"
    source = "the Skaling form, E + A (N^-alpha + R D^-beta)^k"
    parameters = (
        irreducible,
        _term("A", params="alpha"),
        _exponent("alpha"),
        _term("B", tokens="beta"),
        _exponent("beta"),
        Parameter("k", (0.3, 1.0), low=0.05, high=3.0, prior=K_PRIOR),
    )

    def loss(self, params: Any, tokens: Any, *, E: Any, A: Any, alpha: Any, B: Any, beta: Any, k: Any) -> Any:
        first = (np.log(A) - alpha * np.log(params)) / k
        second = (np.log(B) - beta * np.log(tokens)) / k
        return E + np.exp(k * log_sum_exp(first, second))

    def gradient(
        self,
        params: Floats,
        tokens: Floats,
        *,
        E: Floats,
        A: Floats,
        alpha: Floats,
        B: Floats,
        beta: Floats,
        k: Floats,
    ) -> Mapping[str, Floats]:
        ln_n, ln_d = np.log(params), np.log(tokens)
        first, second = (np.log(A) - alpha * ln_n) / k, (np.log(B) - beta * ln_d) / k
        total = np.logaddexp(first, second)
        term, share = np.exp(k * total), np.exp(first - total)
        return {
            "E": np.ones_like(term),
            "A": term * share / A,
            "alpha": -term * share * ln_n,
            "B": term * (1 - share) / B,
            "beta": -term * (1 - share) * ln_d,
            "k": term * (total - share * first - (1 - share) * second),
        }


class Kaplan(LossLaw):
    """L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D (Kaplan et al. 2020, equation 1.5)."""

    formula = "L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D"
    source = "Kaplan et al. 2020, arXiv 2001.08361"
    parameters = (
        Parameter("N_c", low=1e-80, high=1e80, over={"params": ""}),
        Parameter("alpha_N", low=1e-3, high=3.0),
        Parameter("D_c", low=1e-80, high=1e80, over={"tokens": ""}),
        Parameter("alpha_D", low=1e-3, high=3.0),
    )

    def loss(self, params: Any, tokens: Any, *, N_c: Any, alpha_N: Any, D_c: Any, alpha_D: Any) -> Any:
        first = alpha_N / alpha_D * (np.log(N_c) - np.log(params))
        return np.exp(alpha_D * log_sum_exp(first, np.log(D_c) - np.log(tokens)))

    def starting_points(self, inputs: Mapping[str, Floats], mean_loss: float) -> list[dict[str, float]]:
        """Both terms contribute equally at the mean of the runs."""
        params, tokens = (float(np.exp(np.mean(np.log(inputs[name])))) for name in ("params", "tokens"))
        exponents = [0.03, 0.07, 0.15, 0.3, 0.6]
        points = []
        for alpha_n, alpha_d in itertools.product(exponents, exponents):
            half = np.log(mean_loss) / alpha_d - np.log(2)
            points.append(
                {
                    "N_c": params * float(np.exp(np.clip(half * alpha_d / alpha_n, -150, 150))),
                    "alpha_N": alpha_n,
                    "D_c": tokens * float(np.exp(np.clip(half, -150, 150))),
                    "alpha_D": alpha_d,
                }
            )
        return points


class Farseer(LossLaw):
    """L = exp(s N^q + S) + exp(B N^b + Q) D^(-exp(A N^a + E)) (Li et al. 2025, Farseer).

    Both the limit and the exponent of D change with N.
    """

    formula = "L = exp(s N^q + S) + exp(B N^b + Q) D^(-exp(A N^a + E))"
    source = "Li et al. 2025, Farseer, arXiv 2506.10972"
    parameters = (
        Parameter("s", (-0.06,), scale="linear", low=-5.0, high=5.0),
        Parameter("q", (0.1, 0.15), low=0.005, high=0.6),
        Parameter("S", (0.0, 1.0), scale="linear", low=-10.0, high=10.0),
        Parameter("B", (100.0, 230.0), low=1e-2, high=1e5),
        Parameter("b", (-0.2, -0.17), scale="linear", low=-0.8, high=-0.005),
        Parameter("Q", (-1.5, -3.0), scale="linear", low=-20.0, high=20.0),
        Parameter("A", (-1.7,), scale="linear", low=-20.0, high=5.0),
        Parameter("a", (0.045, 0.08), low=0.001, high=0.4),
        Parameter("E", (3.0, 2.0), scale="linear", low=-5.0, high=20.0),
    )

    def loss(
        self, params: Any, tokens: Any, *, s: Any, q: Any, S: Any, B: Any, b: Any, Q: Any, A: Any, a: Any, E: Any
    ) -> Any:
        exponent = np.exp(A * params**a + E)
        return np.exp(s * params**q + S) + np.exp(B * params**b + Q - exponent * np.log(tokens))
