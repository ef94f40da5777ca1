"""The base class of fitters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from flops_fit_core.records import LawFit, Observation, Optimum


class Fitter(ABC):
    """Base class of fitters, which fit a law to trained models and predict from it."""

    @abstractmethod
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Fit a law. Raises FitError, which names the missing runs, if no law can be fitted."""

    @abstractmethod
    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        """N_opt, D_opt and L_opt for a budget of ``flops``, with intervals from the fit's draws."""
