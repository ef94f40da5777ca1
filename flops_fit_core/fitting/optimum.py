"""What to train for a budget, by a fitted law."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.bootstrap import interval
from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.diagnostics import extrapolation
from flops_fit_core.records import LawFit, Optimum

Parameters = Mapping[str, Floats]


def optimum(fit: LawFit, flops: float) -> Optimum:
    """N_opt, D_opt and L_opt for training with C = ``flops``, with intervals from the fit's draws.

    Raises FitError for a budget that is not a positive number, and for a law it does not know.
    """
    if not (np.isfinite(flops) and flops > 0):
        raise FitError(f"flops = {flops}: give a positive number of training FLOPs, such as 1e21")
    if fit.law.name != "isoflop":
        raise FitError(f"there is no optimum for law {fit.law.name!r} here: ask the fitter that made it")
    point = _isoflop({name: np.array([value]) for name, value in fit.law.parameters.items()}, flops)
    draws = _isoflop({name: np.array(values) for name, values in fit.draws.items()}, flops) if fit.draws else None
    params, tokens, loss = (
        interval(float(np.exp(value[0])), np.exp(draws[index]) if draws else np.empty(0), fit.level)
        for index, value in enumerate(point)
    )
    return Optimum(
        flops=flops, params=params, tokens=tokens, loss=loss, notes=extrapolation(flops, fit.flops_range)
    )


def _isoflop(law: Parameters, flops: float) -> tuple[Floats, Floats, Floats]:
    """Ln of N_opt, D_opt, L_opt."""
    ln_flops = np.log(flops)
    ln_reducible = law["ln_kL"] - law["gamma"] * ln_flops
    loss = law["E"] + np.exp(ln_reducible)
    return law["ln_kN"] + law["a"] * ln_flops, law["ln_kD"] + law["b"] * ln_flops, np.log(loss)
