"""Noise of ln L: its level, its change with C, and the part that groups of runs share.

The covariance of ln L is sigma^2 S R S with R = share_0 I + sum_k share_k G_k, where G_k is 1 for two runs in the
same group of source k, the shares sum to 1, and S = (C / C_0)^-h. For a source that pairs runs of both recipes,
G_k is 1 or -1 for two runs of different recipes: the noise of a pair has a positive or a negative correlation. R
is positive definite, because a G_k with negative signs is still positive semidefinite.

The prior is normal on h, and normal on ln sigma with a median of 1% and a factor of 7.4 per standard deviation:
published noise between seeds lies between 0.03% and 1%. The shares have a Dirichlet prior with a large weight
for single runs: a few runs cannot show that they share noise, and an interval that assumes it is too narrow. Both
signs have equal odds. With positive correlations alone, the estimate for pairs with independent noise would be
above 0, and the interval too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.special import gammaincinv
from scipy.stats import norm, qmc

from flops_fit_core.fitting.comparison.design import Design
from flops_fit_core.fitting.data import Bools, Floats

DECAY_SCALE = 0.15
PAIRS = ("pair", "trunk pair")
"""Sources that runs of both recipes share."""
SHARE_WEIGHTS = {"pair": 0.3, "trunk pair": 0.3, "trunk": 0.25}
"""Weights of the Dirichlet prior; that of single runs is 1."""
LN_SIGMA, LN_SIGMA_SCALE = float(np.log(0.01)), 2.0
_BATCH_VALUES = 2_000_000
"""The most matrix elements in memory at a time."""


@dataclass(frozen=True)
class NoiseModel:
    """Correlation matrices of a design, as a function of x, which has a standard normal prior."""

    design: Design
    same_recipe: Floats = field(repr=False)
    """Shape (sources, runs, runs): 1 for two runs of one recipe in one group."""
    other_recipe: Floats = field(repr=False)
    """The same for two runs of different recipes."""
    has_sign: Bools
    """Shape (sources,): whether runs of different recipes may have a negative correlation."""

    @classmethod
    def of(cls, design: Design) -> NoiseModel:
        matrices = [labels[:, None] == labels for labels in design.groups.values()]
        same_group = np.array(matrices, dtype=float).reshape(-1, len(design), len(design))
        across = design.second[:, None] != design.second
        has_sign = np.array([name in PAIRS for name in design.groups], dtype=bool)
        return cls(design, same_group * ~across, same_group * across, has_sign)

    @property
    def dimensions(self) -> int:
        """Length of x: h, and a value per share if sources share noise."""
        return 1 if not len(self.has_sign) else 2 + len(self.has_sign)

    def correlations(self, x: Floats) -> Floats:
        """Correlation of two runs of different recipes by each source, of shape (..., sources)."""
        correlations: Floats = self.shares(x)[..., 1:] * self._signs(x)
        return correlations

    def shares(self, x: Floats) -> Floats:
        """Shares of the variance, of shape (..., 1 + sources): of single runs, then of each source."""
        if self.dimensions == 1:
            return np.ones((*x.shape[:-1], 1))
        weights = np.array([1.0, *(SHARE_WEIGHTS[name] for name in self.design.groups)])
        probabilities = norm.cdf(np.clip(x[..., 1:], -7, 7))
        # x of a source with a sign has this sign, and a share that grows with the absolute value of x.
        folded = np.minimum(np.abs(2 * probabilities[..., 1:] - 1), norm.cdf(7))
        probabilities[..., 1:] = np.where(self.has_sign, folded, probabilities[..., 1:])
        # Normalised gamma variables have a Dirichlet distribution.
        gammas = gammaincinv(weights, probabilities)
        shares: Floats = gammas / gammas.sum(axis=-1, keepdims=True)
        return shares

    def factors(self, x: Floats) -> Iterator[tuple[slice, Floats]]:
        """Batches of rows of x, with the Cholesky factors of their covariances / sigma^2."""
        runs = len(self.design)
        ln_flops = self.design.ln_flops - self.design.ln_flops.mean()
        step = max(1, _BATCH_VALUES // runs**2)
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            shares = self.shares(x[rows])
            matrices = np.tensordot(shares[:, 1:], self.same_recipe, axes=1)
            matrices += np.tensordot(self.correlations(x[rows]), self.other_recipe, axes=1)
            matrices += (shares[:, :1] + 1e-9)[:, :, None] * np.eye(runs)
            scale = np.exp(-DECAY_SCALE * x[rows, :1] * ln_flops)
            yield rows, np.linalg.cholesky(matrices * scale[:, :, None] * scale[:, None, :])

    def _signs(self, x: Floats) -> Floats:
        signs: Floats = np.where(self.has_sign & (x[..., 2:] < 0), -1.0, 1.0)
        return signs


def prior_points(dimensions: int, count: int) -> Floats:
    """Quasi-random points of the prior of x, of shape (count, dimensions). ``count`` must be a power of 2."""
    uniform = qmc.Sobol(dimensions, seed=0).random(count)
    points: Floats = norm.ppf(np.clip(uniform, 1e-6, 1 - 1e-6))
    return points
