"""Objectives over the residuals of ln L."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flops_fit_core.fitting.data import Floats


class Objective(Protocol):
    """A function rho of a residual, summed over runs. Works on arrays of any shape."""

    @property
    def name(self) -> str: ...
    def rho(self, r: Floats) -> Floats: ...
    def psi(self, r: Floats) -> Floats:
        """First derivative of rho."""

    def curvature(self, r: Floats) -> Floats:
        """Second derivative of rho."""


@dataclass(frozen=True)
class LeastSquares:
    """rho = r^2 / 2."""

    name: str = "least squares"

    def rho(self, r: Floats) -> Floats:
        rho: Floats = r * r / 2
        return rho

    def psi(self, r: Floats) -> Floats:
        return r

    def curvature(self, r: Floats) -> Floats:
        return np.ones_like(r)


@dataclass(frozen=True)
class Huber:
    """rho = r^2 / 2 up to ``delta``, then delta (|r| - delta / 2).

    Hoffmann et al. 2022 (section 3.3) use delta = 1e-3 on ln L.
    """

    delta: float = 1e-3
    name: str = "Huber"

    def rho(self, r: Floats) -> Floats:
        size = np.abs(r)
        inner = np.minimum(size, self.delta)
        rho: Floats = inner * (size - inner / 2)
        return rho

    def psi(self, r: Floats) -> Floats:
        return np.clip(r, -self.delta, self.delta)

    def curvature(self, r: Floats) -> Floats:
        return (np.abs(r) < self.delta).astype(np.float64)
