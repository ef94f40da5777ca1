"""Laws of L(N, D), by name.

Parameters are arrays of shape (draws, 1), so one call evaluates all bootstrap draws; ``ln_params`` and
``ln_tokens`` broadcast against them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from flops_fit_core.fitting.data import Floats

Parameters = Mapping[str, Floats]
Surface = Callable[[Parameters, Floats, Floats], tuple[Floats, Floats, Floats]]
"""(parameters, ln N, ln D) -> L, dL / d ln N, dL / d ln D."""


def parametric(law: Parameters, ln_params: Floats, ln_tokens: Floats) -> tuple[Floats, Floats, Floats]:
    """L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2)."""
    a = law["A"] * np.exp(-law["alpha"] * ln_params)
    b = law["B"] * np.exp(-law["beta"] * ln_tokens)
    return law["E"] + a + b, -law["alpha"] * a, -law["beta"] * b


def kaplan(law: Parameters, ln_params: Floats, ln_tokens: Floats) -> tuple[Floats, Floats, Floats]:
    """L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D (Kaplan et al. 2020, equation 1.5)."""
    a = np.exp(law["alpha_N"] / law["alpha_D"] * (law["ln_Nc"] - ln_params))
    b = np.exp(law["ln_Dc"] - ln_tokens)
    loss = np.exp(law["alpha_D"] * np.log(a + b))
    return loss, -law["alpha_N"] * loss * a / (a + b), -law["alpha_D"] * loss * b / (a + b)


def muennighoff(law: Parameters, ln_params: Floats, ln_tokens: Floats) -> tuple[Floats, Floats, Floats]:
    """Approach 3 with the effective N and D of repeated data (Muennighoff et al. 2023, equations 5 and 6).

    ``law["ln_unique"]`` is ln of the number of unique tokens; without it, no token is repeated.
    The derivatives are central differences: the law has kinks at the onset of repetition.
    """
    step = 1e-6
    by_params = [_muennighoff(law, ln_params + dx, ln_tokens) for dx in (-step, step)]
    by_tokens = [_muennighoff(law, ln_params, ln_tokens + dx) for dx in (-step, step)]
    loss = _muennighoff(law, ln_params, ln_tokens)
    return loss, (by_params[1] - by_params[0]) / (2 * step), (by_tokens[1] - by_tokens[0]) / (2 * step)


def _muennighoff(law: Parameters, ln_params: Floats, ln_tokens: Floats) -> Floats:
    unique = np.minimum(law.get("ln_unique", ln_tokens), ln_tokens)
    alpha, beta = law["alpha"], law["beta"]
    ln_g = (np.log(alpha * law["A"]) - np.log(beta * law["B"])) / (alpha + beta)
    # N of the compute-optimal model for the unique tokens: parameters beyond it count less.
    base_n = np.minimum(ln_params, ln_g + beta / alpha * (unique + ln_g))
    ln_n = base_n + _ln_effective(ln_params - base_n, law["R_N"])
    ln_d = unique + _ln_effective(ln_tokens - unique, law["R_D"])
    loss: Floats = law["E"] + law["A"] * np.exp(-alpha * ln_n) + law["B"] * np.exp(-beta * ln_d)
    return loss


def _ln_effective(ln_ratio: Floats, r: Floats) -> Floats:
    """Ln (1 + R (1 - exp(-(ratio - 1) / R))): the effective ratio if repetition loses value with scale R."""
    ln_effective: Floats = np.log1p(-r * np.expm1(-np.expm1(ln_ratio) / r))
    return ln_effective


_CHINCHILLA = frozenset({"E", "A", "B", "alpha", "beta"})
_POWER_LAWS = frozenset({"E", "ln_kL", "gamma", "ln_kN", "a", "ln_kD", "b"})
PARAMETERS: dict[str, frozenset[str]] = {
    "parametric": _CHINCHILLA,
    "kaplan": frozenset({"alpha_N", "alpha_D", "ln_Nc", "ln_Dc"}),
    "muennighoff": _CHINCHILLA | {"R_N", "R_D"},
    "isoflop": _POWER_LAWS,
    "envelope": _POWER_LAWS,
}
"""Law -> the parameters that its optimum needs."""
SURFACES: dict[str, Surface] = {"parametric": parametric, "kaplan": kaplan, "muennighoff": muennighoff}
"""Laws of L(N, D) by name."""


def closed_form(law: Parameters, ln_flops: Floats) -> Floats:
    """Ln N_opt of the parametric law in closed form for C = 6 N D (Hoffmann et al. 2022, equation 4)."""
    ratio = np.log(law["alpha"] * law["A"] / (law["beta"] * law["B"]))
    ln_params: Floats = (ratio + law["beta"] * (ln_flops - np.log(6))) / (law["alpha"] + law["beta"])
    return ln_params
