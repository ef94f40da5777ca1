"""Laws of the loss with further inputs: vocabulary, experts, parallel streams."""

from __future__ import annotations

from typing import Any

import numpy as np

from flops_fit_core.plugins import LossLaw, Parameter
from flops_fit_laws.dense import irreducible


class Vocabulary(LossLaw):
    """L = -E + A_1 / N_nv^alpha + A_2 / N_v^gamma + B / D^alpha (Tao et al. 2024, equation 7).

    L is the unigram-normalised loss, which may be negative: nats per token less the loss of a unigram model. N_nv
    counts the parameters without the vocabulary, N_v = V d those of it, and D the training characters. As in the
    published fit, N_nv and D share their exponent.
    """

    formula = "L = -E + A_1 / N_nv^alpha + A_2 / N_v^gamma + B / D^alpha"
    source = "Tao et al. 2024, arXiv 2407.13623"
    inputs = ("params", "vocabulary_params", "tokens")
    response = "loss"
    parameters = (
        Parameter("E", (1.1, 1.6), scale="linear", of_loss=True),
        Parameter("A_1", (0.1, 0.3), low=1e-9, high=1e6, over={"params": "alpha"}, of_loss=True),
        Parameter("alpha", (0.2, 0.45), low=0.005, high=3.0),
        Parameter("A_2", (0.03, 0.1), low=1e-9, high=1e6, over={"vocabulary_params": "gamma"}, of_loss=True),
        Parameter("gamma", (0.3, 0.7), low=0.005, high=3.0),
        Parameter("B", (0.1, 0.3), low=1e-9, high=1e6, over={"tokens": "alpha"}, of_loss=True),
    )

    def loss(
        self,
        params: Any,
        vocabulary_params: Any,
        tokens: Any,
        *,
        E: Any,
        A_1: Any,
        alpha: Any,
        A_2: Any,
        gamma: Any,
        B: Any,
    ) -> Any:
        return -E + A_1 * params**-alpha + A_2 * vocabulary_params**-gamma + B * tokens**-alpha


class ClarkMoe(LossLaw):
    """ln L = a ln N + b ln E' + c ln N ln E' + d, with E' the saturating number of experts (Clark et al. 2022).

    1 / E' = 1 / (E - 1 + 1 / (1 / E_start - 1 / E_max)) + 1 / E_max. N counts the parameters of the dense base.
    """

    formula = "ln L = a ln N + b ln E' + c ln N ln E' + d, with saturating experts E'"
    source = "Clark et al. 2022, arXiv 2202.01169"
    inputs = ("params", "experts")
    parameters = (
        Parameter("a", (-0.1, -0.05), scale="linear", low=-2.0, high=2.0),
        Parameter("b", (-0.2, -0.05), scale="linear", low=-3.0, high=3.0),
        Parameter("c", (0.0, 0.01), scale="linear", low=-1.0, high=1.0),
        Parameter("d", (1.0, 3.0), scale="linear", low=-50.0, high=50.0),
        Parameter("E_start", (1.5, 3.0), low=1.0, high=100.0),
        Parameter("E_max", (100.0, 400.0), low=2.0, high=1e5),
    )

    def loss(self, params: Any, experts: Any, *, a: Any, b: Any, c: Any, d: Any, E_start: Any, E_max: Any) -> Any:
        shift = 1 / (1 / E_start - 1 / E_max)
        ln_experts = -np.log(1 / (experts - 1 + shift) + 1 / E_max)
        ln_n = np.log(params)
        return np.exp(a * ln_n + b * ln_experts + c * ln_n * ln_experts + d)


class JointMoe(LossLaw):
    """L = A E^d N^(alpha + g ln E) + B E^w D^(beta + z ln E) + c (Ludziejewski et al. 2025).

    E is the number of experts, N counts the active parameters; alpha and beta are negative.
    """

    formula = "L = A E^d N^(alpha + g ln E) + B E^w D^(beta + z ln E) + c"
    source = "Ludziejewski et al. 2025, arXiv 2502.05172"
    inputs = ("params", "tokens", "experts")
    parameters = (
        Parameter("A", (0.1, 0.4), low=1e-7, high=1e7, over={"params": "-alpha"}, of_loss=True),
        Parameter("alpha", (-0.5, -0.2), scale="linear", low=-3.0, high=-0.005),
        Parameter("d", (0.0,), scale="linear", low=-20.0, high=20.0),
        Parameter("g", (0.0,), scale="linear", low=-1.0, high=1.0),
        Parameter("B", (0.1, 0.4), low=1e-7, high=1e7, over={"tokens": "-beta"}, of_loss=True),
        Parameter("beta", (-0.5, -0.2), scale="linear", low=-3.0, high=-0.005),
        Parameter("w", (0.0,), scale="linear", low=-20.0, high=20.0),
        Parameter("z", (0.0,), scale="linear", low=-1.0, high=1.0),
        Parameter("c", (0.3, 0.7), scale="linear", low=0.0, of_loss=True),
    )

    def loss(
        self,
        params: Any,
        tokens: Any,
        experts: Any,
        *,
        A: Any,
        alpha: Any,
        d: Any,
        g: Any,
        B: Any,
        beta: Any,
        w: Any,
        z: Any,
        c: Any,
    ) -> Any:
        ln_e = np.log(experts)
        first = np.log(A) + d * ln_e + (alpha + g * ln_e) * np.log(params)
        second = np.log(B) + w * ln_e + (beta + z * ln_e) * np.log(tokens)
        return np.exp(first) + np.exp(second) + c


class Parallel(LossLaw):
    """L = E + (A / (N (k ln S + 1)))^alpha for S parallel streams (Chen et al. 2025, ParScale)."""

    formula = "L = E + (A / (N (k ln S + 1)))^alpha"
    source = "Chen et al. 2025, arXiv 2505.10475"
    inputs = ("params", "streams")
    parameters = (
        irreducible,
        Parameter("A", (1e-6, 1e-3, 0.1), low=1e-30, high=1e6, over={"params": ""}),
        Parameter("k", (0.1, 0.4), low=1e-4, high=1e2),
        Parameter("alpha", (0.1, 0.2, 0.4), low=0.005, high=3.0),
    )

    def loss(self, params: Any, streams: Any, *, E: Any, A: Any, k: Any, alpha: Any) -> Any:
        return E + (A / (params * (k * np.log(streams) + 1))) ** alpha
