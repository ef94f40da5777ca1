"""The options and the prediction that all bundled fitters share."""

from __future__ import annotations

from dataclasses import dataclass

from flops_fit_core.fitting.laws.optima import optimum
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.records import LawFit, Optimum


@dataclass(frozen=True, kw_only=True)
class BootstrapFitter(Fitter):
    """A fitter with bootstrap intervals. Equal observations and options give equal fits."""

    level: float = 0.9
    """Level of all intervals."""
    draws: int = 1000
    """Bootstrap draws; 0 for no intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    name: str = ""
    """Qualified name under which the fit is recorded."""

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        """N_opt, D_opt and L_opt for training with C = ``flops``, with intervals from the fit's draws."""
        return optimum(fit, flops)
