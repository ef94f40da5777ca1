"""The loss that each fitted law gives for N and D, by the law's name.

A law's parameters are arrays of shape (draws, 1), so that one call serves all bootstrap draws; ``ln_params``
and ``ln_tokens`` broadcast against them.
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


SURFACES: dict[str, Surface] = {"parametric": parametric}
"""Laws of L(N, D) by name."""


def closed_form(law: Parameters, ln_flops: Floats) -> Floats:
    """Ln N_opt of the parametric law in closed form where C = 6 N D (Hoffmann et al. 2022, equation 4)."""
    ratio = np.log(law["alpha"] * law["A"] / (law["beta"] * law["B"]))
    out: Floats = (ratio + law["beta"] * (ln_flops - np.log(6))) / (law["alpha"] + law["beta"])
    return out
