"""Variance model of the runs, by restricted maximum likelihood.

    ln sigma_i = s0 + s1 [under-trained] + s2 |ln N_i / N_opt(C_i)| + g ln N_i (or g ln C_i)
    error_i = sqrt(1 - rho) sigma_i e_i + sqrt(rho) t_j e_j: a random effect e_j per trajectory j (Laird and Ware
    1982), with t_j the geometric mean of sigma along it

Runs with too many parameters for their budget (under-trained) vary more between seeds. Noise may grow or shrink
with the size or the compute of a run. Rows of a trajectory (checkpoints of a run, or runs that branch off a trunk)
have correlated errors. Few runs determine none of this well, so the model keeps the full posterior of (s1, s2, g,
rho) on a grid, under wide priors, and every bootstrap draw samples these values and an overall sigma from it. For
constant noise this is the residual bootstrap with Student's t calibration. Half of the prior lies on g = 0, a
quarter on growth with N, and a quarter on growth with C.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flops_fit_core.fitting.data import Floats, Ints, Runs
from flops_fit_core.fitting.distributions import f_tail
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import minimise
from flops_fit_core.fitting.laws.surfaces import Stack, Surface

_STEPS = np.linspace(-2.0, 2.8, 13)
_SLOPES = np.linspace(-1.0, 1.0, 9)
_COARSE_STEPS = np.linspace(-1.6, 2.4, 6)
_COARSE_SLOPES = np.linspace(-0.6, 0.6, 5)
"""Coarser grids for settings with growth or correlation."""
_GROWTHS = np.array([-0.4, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.4, 0.5])
"""Exponents g for ln N. For ln C they are halved: in an IsoFLOP sweep it spans twice the range of ln N."""
_GROWTH_SD = 0.25
_RATIOS = np.array([0.0, *np.geomspace(0.1, 1e4, 16)])
"""Ratios of variance shared along a trajectory to that of single rows: correlations from 0 to .9999."""
_MAX_OFFSET = 5.0
"""Noise stops growing at a factor of e^5 from the optimum."""
_ROUNDING = float(np.finfo(float).eps)
STEP_MEAN, _STEP_SD, _SLOPE_SD = 0.8, 1.5, 0.3
"""Observed variation between seeds is up to 5 times (e^1.6) larger for under-trained runs than at the optimum. The
prior is centred on half of that exponent, and its width includes both 0 and 1.6."""
_MIN_POSTERIOR = 1e-5
"""Settings with a smaller posterior, relative to the best, are dropped."""
_MAX_CELLS = 2_000_000
"""Numbers per array in a chunk."""


@dataclass(frozen=True)
class NoiseModel:
    """The posterior of the noise on a grid, and the inputs for drawing from it."""

    covariates: Floats
    """Shape (runs, 4): under-trained (0 or 1), |ln N / N_opt(C)|, and ln N and ln C less their means."""
    trunk: Ints
    """Trajectory number of each run, from 0."""
    settings: Floats
    """Rows (s1, s2, g of N, g of C, rho)."""
    probability: Floats
    scale: Floats
    """sqrt(q) at each setting: sigma0 = scale / sqrt(chi2 with ``dof``)."""
    dof: int
    relative: Floats | float = 1.0
    """Further factor of the standard deviation of each run, from standard errors of losses."""

    def sigma(self) -> Floats:
        """Posterior mean of the standard deviation of ln L, per run."""
        weight = self.probability * self.scale / np.sqrt(self.dof)
        standard_deviations: Floats = self.relative * (weight @ np.exp(self.settings[:, :4] @ self.covariates.T))
        return standard_deviations

    @property
    def correlation(self) -> float:
        """Posterior mean of the correlation within a trajectory."""
        return float(self.probability @ self.settings[:, 4])

    def chance_above(self, correlation: float) -> float:
        """Posterior probability that the correlation within a trajectory is larger."""
        return float(self.probability[self.settings[:, 4] > correlation].sum())

    def at(self, covariates: Floats, trunk: Ints) -> NoiseModel:
        """The same noise model for other runs."""
        return replace(self, covariates=covariates, trunk=trunk)

    def draw(self, draws: int, random: np.random.Generator, pool: Floats | None = None) -> Floats:
        """Errors of shape (draws, runs), resampled from standardised residuals ``pool``; Gaussian if None."""
        picked = random.choice(len(self.probability), size=draws, p=self.probability)
        rho = self.settings[picked, 4:]
        shape = (draws, len(self.trunk))
        errors = random.standard_normal(shape) if pool is None else pool[random.integers(len(pool), size=shape)]
        errors *= np.exp(self.settings[picked, :4] @ self.covariates.T)
        if rho.any():
            errors *= np.sqrt(1 - rho)
            means = _average_by_trajectory(self.covariates, self.trunk)
            shared = np.exp(self.settings[picked, :4] @ means.T) * np.sqrt(rho)
            errors += (shared * random.standard_normal(shared.shape))[:, self.trunk]
        errors *= (self.scale[picked] / np.sqrt(random.chisquare(self.dof, draws)))[:, None]
        return errors * self.relative

    def misfit(self, residuals: Floats, design: Floats, extra: Floats) -> float:
        """P value of the F test that columns ``extra`` (n, k) add nothing to ``design`` (n, p).

        Averaged over the posterior of the noise (Meng 1994).
        """
        relative = np.broadcast_to(self.relative, residuals.shape)
        design, extra, residuals = (values / relative[:, None] for values in (design, extra, residuals[:, None]))
        columns = np.column_stack([_basis(np.column_stack([design, extra])), residuals])
        p, k = _basis(design).shape[1], columns.shape[1] - 1
        dof = len(relative) - k
        if dof < 1 or k == p:
            return 1.0
        total = 0.0
        for rho in np.unique(self.settings[:, 4]):
            rows = np.flatnonzero(self.settings[:, 4] == rho)
            ln_sigma = self.settings[rows, :4] @ self.covariates.T
            gram, _ = _grams(columns, ln_sigma, self.trunk, np.array([rho]))
            rss_small, rss_large = (_residual_squares(gram[:, 0], size)[0] for size in (p, k))
            value = (rss_small - rss_large) / (k - p) / np.maximum(rss_large / dof, 1e-300)
            total += float(self.probability[rows] @ f_tail(value, k - p, dof))
        return total


def optimum_offsets(surface: Surface, constraint: FlopsPerToken, runs: Runs) -> Floats:
    """Ln N / N_opt(C) per run, under a surface with one row; interpolated between nine budgets."""
    ln_flops = np.log(runs.flops)
    grid = np.linspace(ln_flops.min(), ln_flops.max() + 1e-9, 9)
    optima = minimise(Stack([surface] * len(grid)), constraint, np.exp(grid))[0]
    ln_ratio: Floats = np.log(runs.params) - np.interp(ln_flops, grid, optima.ravel())
    return ln_ratio


def build_covariates(offset: Floats, ln_params: Floats | None = None, ln_flops: Floats | None = None) -> Floats:
    """Covariates of a noise model from ``offset`` = ln N / N_opt(C), and from ln N and ln C minus their means.

    Without ln N or ln C, noise does not grow with them.
    """
    zero = np.zeros_like(offset)
    columns = [(offset > 0).astype(float), np.minimum(np.abs(offset), _MAX_OFFSET)]
    columns += [zero if column is None else column - column.mean() for column in (ln_params, ln_flops)]
    return np.stack(columns, axis=1)


def fit_noise(residuals: Floats, jacobian: Floats, covariates: Floats, trunk: Ints) -> NoiseModel:
    """Fit the noise model to ``residuals`` (n,) of a least-squares fit with ``jacobian`` (n, p).

    ``covariates`` come from :func:`build_covariates`; ``trunk`` numbers the trajectories from 0. Needs n > p.
    """
    shared = len(np.unique(trunk)) < len(trunk)
    ratios = _RATIOS if shared else _RATIOS[:1]
    settings, prior = _grid(covariates, shared)
    rhos = ratios / (1 + ratios)
    basis = _basis(jacobian)
    columns, dof = np.column_stack([basis, residuals]), len(residuals) - basis.shape[1]
    restricted, q = np.empty((2, len(settings), len(rhos)))
    cells_per_setting = max(len(residuals) * (8 if shared else 1), columns.shape[1] ** 2 * len(rhos))
    for start in range(0, len(settings), step := max(1, _MAX_CELLS // cells_per_setting)):
        part = slice(start, start + step)
        ln_sigma = settings[part, :4] @ covariates.T
        gram, determinant = _grams(columns, ln_sigma, trunk, rhos)
        q[part], information = _residual_squares(gram, basis.shape[1])
        restricted[part] = -0.5 * (determinant + information + dof * np.log(q[part]))
    level = restricted + prior[:, None] + _ratio_prior(ratios)
    settings = np.column_stack([np.repeat(settings, len(rhos), axis=0), np.tile(rhos, len(settings))])
    level, scale = np.nan_to_num(level.ravel(), nan=-np.inf, posinf=-np.inf), np.sqrt(q).ravel()
    weight = np.exp(level - np.max(level)) if np.isfinite(level).any() else np.ones(len(level))
    is_likely = weight >= _MIN_POSTERIOR
    weight = weight[is_likely] / weight[is_likely].sum()
    return NoiseModel(covariates, trunk, settings[is_likely], weight, scale[is_likely], dof)


def _average_by_trajectory(values: Floats, trunk: Ints) -> Floats:
    """Means over each trajectory, from (runs, k) to (trajectories, k)."""
    count = np.bincount(trunk)
    return np.stack([np.bincount(trunk, column) / np.maximum(count, 1) for column in values.T], axis=1)


def _grid(covariates: Floats, shared: bool) -> tuple[Floats, Floats]:
    """Settings (s1, s2, g of N, g of C) and their log priors."""
    sided = 0 < covariates[:, 0].sum() < len(covariates)
    growing = [index for index in (2, 3) if np.ptp(covariates[:, index]) > 1.0]
    parts, priors = [], []
    for index in (None, *growing):
        coarse = shared or index is not None
        steps = (_COARSE_STEPS if coarse else _STEPS) if sided else np.zeros(1)
        slopes = _COARSE_SLOPES if coarse else _SLOPES
        growths = np.zeros(1) if index is None else _GROWTHS
        step, slope, growth = (axis.ravel() for axis in np.meshgrid(steps, slopes, growths, indexing="ij"))
        density = -((step - STEP_MEAN) ** 2) / (2 * _STEP_SD**2) - slope**2 / (2 * _SLOPE_SD**2)
        density = density - growth**2 / (2 * _GROWTH_SD**2)
        share = (0.5 if index is None else 0.25) if growing else 1.0
        priors.append(density - np.log(np.exp(density).sum()) + np.log(share))
        part = np.zeros((len(step), 4))
        part[:, 0], part[:, 1] = step, slope
        if index is not None:
            part[:, index] = growth if index == 2 else growth / 2
        parts.append(part)
    return np.concatenate(parts), np.concatenate(priors)


def _ratio_prior(ratios: Floats) -> Floats:
    """Log prior of each ratio: three quarters flat in rho, and a quarter flat in ln ratio for ratios of 1 and
    more.

    The second part is the usual prior of a scale; it avoids shrinking the offsets of training curves.
    """
    if len(ratios) == 1:
        return np.zeros(1)
    flat = ratios / (1 + ratios) ** 2 * np.log(ratios[-1] / ratios[-2])
    flat[0] = ratios[1] / 1.5
    large = (ratios >= 1) / np.sum(ratios >= 1)
    log_prior: Floats = np.log(0.75 * flat / flat.sum() + 0.25 * large)
    return log_prior


def _basis(columns: Floats) -> Floats:
    """Orthonormal columns with the span of ``columns``, in their order."""
    scale = np.sqrt((columns**2).sum(axis=0))
    q, r = np.linalg.qr(columns / np.where(scale > 0, scale, 1))
    basis: Floats = q[:, np.abs(np.diag(r)) > len(columns) * _ROUNDING]
    return basis


def _grams(columns: Floats, ln_sigma: Floats, trunk: Ints, rhos: Floats) -> tuple[Floats, Floats]:
    """Products X' V^-1 X of columns X (n, k), shape (settings, rhos, k, k), and ln det V, shape (settings, rhos).

    V has variances (1 - rho) sigma^2 of rows, sigma = exp(``ln_sigma``) (settings, n), and rho t^2 of
    trajectories, with t the geometric mean of sigma along a trajectory.
    """
    n, k = columns.shape
    weight = np.exp(-ln_sigma)
    row_index, column_index = np.triu_indices(k)
    products = (weight**2) @ (columns[:, row_index] * columns[:, column_index])
    gram = np.empty((len(weight), k, k))
    gram[:, row_index, column_index] = gram[:, column_index, row_index] = products
    determinant = 2 * ln_sigma.sum(axis=1)
    if len(rhos) == 1 and rhos[0] == 0:
        return gram[:, None], determinant[:, None]
    order = np.argsort(trunk, kind="stable")
    starts = np.flatnonzero(np.diff(trunk[order], prepend=-1))
    count = np.diff(starts, append=n).astype(float)
    square = weight[:, order] ** 2
    sums = np.add.reduceat(square[:, :, None] * columns[order], starts, axis=1)
    total = np.add.reduceat(square, starts, axis=1)
    shared = np.exp(2 * np.add.reduceat(ln_sigma[:, order], starts, axis=1) / count)
    grams, determinants = np.empty((len(weight), len(rhos), k, k)), np.empty((len(weight), len(rhos)))
    for column, rho in enumerate(rhos):
        inner = 1 - rho + rho * shared * total
        part = (sums * (rho * shared / inner)[:, :, None]).swapaxes(1, 2) @ sums
        grams[:, column] = (gram - part) / (1 - rho)
        determinants[:, column] = (n - len(count)) * np.log(1 - rho) + np.log(inner).sum(axis=1) + determinant
    return grams, determinants


def _residual_squares(gram: Floats, p: int) -> tuple[Floats, Floats]:
    """Residual sum of squares of the last column after regression on the first ``p``, and ln det of their block.

    For Gram matrices (..., k, k) (Patterson and Thompson 1971).
    """
    block, cross = gram[..., :p, :p], gram[..., :p, -1:]
    explained = (cross * np.linalg.solve(block, cross)).sum(axis=(-2, -1))
    rss: Floats = np.maximum(gram[..., -1, -1] - explained, 1e-300)
    return rss, np.linalg.slogdet(block)[1]
