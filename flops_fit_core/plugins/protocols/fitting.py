"""Fitting a law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flops_fit_core.records import LawFit, Observation, Optimum


class Fitter(Protocol):
    """Fits a law to trained models and says what it predicts."""

    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Raises FitError, saying what is missing, where no law can be fitted."""

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        """N_opt, D_opt and L_opt for a budget of ``flops``, with intervals from the fit's draws."""
