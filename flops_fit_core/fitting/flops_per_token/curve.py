"""A smooth curve of FLOPs per token f(N) through the sizes of a table, and its uncertainty.

A transformer of width d has B ~ L d^2 parameters in its L blocks. Along a ladder with d ~ B^r, attention costs
L d ~ B^(1 - r) FLOPs per token, and embeddings and head have V d ~ B^r parameters, of which N counts all, some or
none. If all matrix products are counted,

    N = B + e B^r,    f = c (B + k e B^r) + t B^(1 - r) + u B^r,    c, e, t, u >= 0,

so f ~ N for large N under every convention of N. k is 0, 1/2 or 1: the share of the counted embeddings that takes
part in matrix products. c is 6, or free (other operations counted, or a mixture of experts).

The curve is a weighted mean of candidates; no model is selected. Candidates are all choices of terms at each (r,
e) of a grid, f = 6 N, f = c N and a power law, weighted by the Bayesian information criterion (Schwarz 1978). Each
draw picks a candidate. Noise is the scatter of sizes about the curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats, Ints

_RATIOS = np.array([0.0, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.37, 0.41, 0.45, 0.5])
"""Values of r: only depth varies at 0, width and depth at 1/3, only width at 1/2."""
_LN_SHARES: Floats = np.linspace(np.log(0.01), np.log(30.0), 20)
"""Ln of values of e B^r / B at the mean size."""
_SHARE_STEP, _SHARE_SPAN = float(_LN_SHARES[1] - _LN_SHARES[0]), float(np.ptp(_LN_SHARES))
_MAX_ROUNDS = 9
"""The grid narrows around its best cell at most this often."""
_ROUNDING = 1e-7
"""Relative scatter below which curves are equally good."""
_POWER_LAW_PRIOR = 0.02
"""Prior weight of a power law; no count of FLOPs follows one far beyond the sizes."""
_EXACT_SCATTER = 1e-5
"""Relative scatter below which the grid stops narrowing."""
_MAX_LOG_WEIGHT_GAP = 12.0
"""Candidates this far below the best log weight are left out."""
_FREE_PRIOR = 0.1
"""Prior weight of free c: dense models with all matrix products counted have c = 6."""
_MIN_WEIGHT = 1e-4
"""Candidates of smaller weight are left out."""
_BANDWIDTHS = (0.25, 0.5, 1.0)
"""Bandwidths in ln N for smoothing the residuals of the candidates."""
_MAX_ERROR_SHARE = 0.1
"""Smoothed residuals are added if cross-validation reduces the squared error to less than this share."""
_MAX_POINTS = 48
"""With more points, neighbours are merged."""

# (k, t, u, c is free) of each candidate.
_TERMS = [
    (k, t, u, free)
    for k, t, u in [(0.0, 1, 0), (0.0, 0, 1), (0.0, 1, 1), (0.5, 0, 0), (0.5, 1, 0), (1.0, 1, 0), (0.0, 0, 0)]
    for free in (False, True)
]


@dataclass(frozen=True)
class _Cell:
    """A value of (r, e)."""

    ratio: float
    share: float


@dataclass(frozen=True)
class _Candidate:
    """A least-squares fit of f / 6N by columns that depend on N only."""

    cell: _Cell | None
    """None for f = c N and for a power law."""
    terms: tuple[float, int, int, bool] | None
    log_weight: float
    coefficients: Floats
    covariance: Floats
    """Of the coefficients, for scatter of variance 1."""
    rss: float
    dof: int


@dataclass(frozen=True)
class FlopsCurve:
    """The curve at the requested ln N."""

    ln_flops: Floats
    draws: Floats
    """Ln f of further curves consistent with the sizes, shape (draws, points)."""


def fit_curve(ln_params: Floats, ln_flops: Floats, at: Floats, draws: int = 0, seed: int = 0) -> FlopsCurve:
    """The curve through distinct sizes of equal weight, evaluated at ``at``."""
    centre = float(ln_params.mean())
    x, excess = ln_params - centre, ln_flops - ln_params - np.log(6)
    all_x, all_excess = x, excess
    if len(x) > _MAX_POINTS:
        group = np.argsort(np.argsort(x, kind="stable"), kind="stable") * _MAX_POINTS // len(x)
        x, excess = _means(x, group), _means(excess, group)
    candidates = _fit_candidates(x, excess)
    weights = _weights(candidates)
    is_selected = weights > _MIN_WEIGHT
    selected = [candidate for candidate, used in zip(candidates, is_selected, strict=True) if used]
    weights = weights[is_selected] / weights[is_selected].sum()
    points = np.concatenate([at - centre, x, all_x])
    blocks = _blocks_of_cells(selected, points)
    mean = np.zeros_like(points)
    for candidate, weight in zip(selected, weights, strict=True):
        curve = _evaluate_candidate(candidate, points, blocks[candidate.cell], candidate.coefficients[None])[0]
        mean += weight * curve
    random = np.random.default_rng(seed)
    drawn = _draw_curves(selected, weights, points, blocks, draws, random)
    at_merged, at_sizes = slice(len(at), len(at) + len(x)), slice(len(at) + len(x), None)
    smoother = _fit_smoother(x, excess - mean[at_merged], points)
    if smoother is not None:
        mean = mean + smoother @ (excess - mean[at_merged])
        drawn = drawn + (excess - drawn[:, at_merged]) @ smoother.T
    scatter = float(np.sqrt(np.mean((all_excess - mean[at_sizes]) ** 2)))
    drawn = drawn + _widen_draws(all_x, points, drawn[:, at_sizes], scatter, random)
    base = at + np.log(6)
    # Centre the draws on the curve: their mean differs from it by rounding of the weights.
    drawn = drawn[:, : len(at)] - (drawn[:, : len(at)].mean(axis=0) if draws else 0.0) + mean[: len(at)]
    return FlopsCurve(base + mean[: len(at)], base + drawn)


# ---------------------------------------------------------------------------- candidates


def _fit_candidates(x: Floats, excess: Floats) -> list[_Candidate]:
    y = np.exp(-excess)
    # y = 6 N / f: columns times y are relative to f.
    reference_rss = float(min(np.sum((1 - y) ** 2), np.sum((1 - y * y.sum() / (y @ y)) ** 2)))
    simple = [_fit_proportional(y, free, reference_rss) for free in (False, True)]
    if len(x) > 2:
        simple.append(_fit_power_law(np.stack([np.ones_like(x), x], axis=1), excess, reference_rss))
    grid = _Grid(_RATIOS, _LN_SHARES, 0.05, _SHARE_STEP)
    log_prior, physical = 0.0, list[_Candidate]()
    for _ in range(_MAX_ROUNDS):
        physical = _fit_physical(grid.cells(), x, y, log_prior, reference_rss)
        weights = _weights([*simple, *physical])
        by_cell: dict[_Cell, float] = {}
        for candidate, weight in zip(physical, weights[len(simple) :], strict=True):
            assert candidate.cell is not None
            by_cell[candidate.cell] = by_cell.get(candidate.cell, 0.0) + weight
        best = max(by_cell, key=lambda cell: by_cell[cell], default=None)
        if (
            best is None
            or by_cell[best] < 0.3
            or min(candidate.rss for candidate in physical) < len(x) * _EXACT_SCATTER**2
        ):
            break
        grid, prior_share = grid.refine(best)
        log_prior += np.log(prior_share)
    return [*simple, *physical]


@dataclass(frozen=True)
class _Grid:
    """Values of r and of ln e, and their spacing."""

    ratios: Floats
    ln_shares: Floats
    ratio_step: float
    share_step: float

    def cells(self) -> list[_Cell]:
        """All pairs, and each r with e = 0 (no embeddings in N)."""
        shares = [0.0, *np.exp(self.ln_shares).tolist()]
        return [_Cell(float(ratio), share) for ratio in self.ratios for share in shares]

    def refine(self, best: _Cell) -> tuple[_Grid, float]:
        """A grid of half the spacing around a cell, four old steps wide, and its share of the prior.

        A cell at the edge moves the grid without changing its spacing.
        """
        ln_share = np.log(best.share) if best.share else float(np.median(self.ln_shares))
        offsets = np.arange(-4, 5)
        inside = self.ln_shares[0] < ln_share < self.ln_shares[-1]
        share_step = self.share_step / 2 if inside or not best.share else self.share_step
        inside = self.ratios[0] < best.ratio < self.ratios[-1] or best.ratio in (0.0, 0.5)
        ratio_step = self.ratio_step / 2 if inside else self.ratio_step
        ratios = np.unique(np.clip(best.ratio + ratio_step * offsets, 0.0, 0.5))
        narrower = min(1.0, 8 * ratio_step / 0.5) * min(1.0, 8 * share_step / _SHARE_SPAN)
        wider = min(1.0, np.ptp(self.ratios) / 0.5)
        wider *= min(1.0, np.ptp(self.ln_shares) / _SHARE_SPAN)
        ln_shares: Floats = (ln_share + share_step * offsets).astype(np.float64)
        return _Grid(ratios, ln_shares, ratio_step, share_step), float(narrower / wider)


def _fit_physical(
    cells: list[_Cell], x: Floats, y: Floats, log_prior: float, reference_rss: float
) -> list[_Candidate]:
    ratio = np.array([cell.ratio for cell in cells])[:, None]
    share = np.array([cell.share for cell in cells])[:, None]
    blocks = _ln_blocks(ratio, share, x)
    body, table, attention = (np.exp(part - x) * y for part in (blocks, ratio * blocks, (1 - ratio) * blocks))
    fits = []
    for terms in _TERMS:
        k, has_t, has_u, free = terms
        base = body + k * share * table
        columns = [base] * free + [attention] * has_t + [table] * has_u
        if len(columns) >= len(x):
            continue
        coefficients, covariance, rss = _least_squares(columns, np.ones_like(base) if free else 1 - base)
        usable = (coefficients > 0).all(axis=1) & ((share[:, 0] > 0) | (k == 0 and bool(has_t or has_u)))
        prior = log_prior - np.log(len(cells) * len(_TERMS)) + free * np.log(_FREE_PRIOR)
        weight = prior + _log_weight(rss, len(x), len(columns), reference_rss)
        fits.append((terms, np.where(usable, weight, -np.inf), coefficients, covariance, rss))
    highest = max((fit[1].max() for fit in fits), default=-np.inf)
    return [
        _Candidate(
            cells[row],
            terms,
            float(weight[row]),
            coefficients[row],
            covariance[row],
            float(rss[row]),
            len(x) - coefficients.shape[1],
        )
        for terms, weight, coefficients, covariance, rss in fits
        for row in np.flatnonzero(np.isfinite(weight) & (weight > highest - _MAX_LOG_WEIGHT_GAP))
    ]


def _least_squares(columns: list[Floats], target: Floats) -> tuple[Floats, Floats, Floats]:
    """Coefficients, their covariance for scatter of variance 1, and the sum of squares; one fit per row."""
    if not columns:
        return np.empty((len(target), 0)), np.empty((len(target), 0, 0)), (target**2).sum(axis=1)
    design = np.stack(columns, axis=2)
    size = np.sqrt((design**2).sum(axis=1))
    design = design / size[:, None, :]
    inverse = np.linalg.pinv(design.swapaxes(1, 2) @ design, rcond=1e-13, hermitian=True)
    solved = (inverse @ (design.swapaxes(1, 2) @ target[:, :, None]))[..., 0]
    rss = ((target - (design @ solved[:, :, None])[..., 0]) ** 2).sum(axis=1)
    return solved / size, inverse / size[:, :, None] / size[:, None, :], rss


def _fit_proportional(y: Floats, free: bool, reference_rss: float) -> _Candidate:
    """Fit f = c N, with c free or 6."""
    coefficients, covariance, rss = _least_squares([y[None]], np.ones_like(y)[None])
    if not free:
        coefficients, covariance, rss = np.ones((1, 1)), np.zeros((1, 1, 1)), ((1 - y) ** 2).sum(keepdims=True)
    weight = float(_log_weight(rss, len(y), int(free), reference_rss)[0] + free * np.log(_FREE_PRIOR))
    dof = max(1, len(y) - int(free))
    return _Candidate(None, None, weight, coefficients[0], covariance[0], float(rss[0]), dof)


def _fit_power_law(design: Floats, excess: Floats, reference_rss: float) -> _Candidate:
    covariance = np.linalg.inv(design.T @ design)
    coefficients: Floats = np.asarray(covariance @ design.T @ excess, dtype=np.float64)
    rss = float(((excess - design @ coefficients) ** 2).sum())
    weight = float(np.log(_POWER_LAW_PRIOR) + _log_weight(np.array(rss), len(excess), 2, reference_rss))
    return _Candidate(None, None, weight, coefficients, covariance.astype(np.float64), rss, len(excess) - 2)


def _log_weight(rss: Floats, points: int, linear: int, reference_rss: float) -> Floats:
    """Log Bayes factor of a regression (Liang et al. 2008), relative to f = c N.

    Scatter is judged by the remaining degrees of freedom, so that candidates with many terms do not interpolate
    few sizes.
    """
    relative = (rss / points + _ROUNDING**2) / (reference_rss / points + _ROUNDING**2)
    result: Floats = -0.5 * max(0, points - linear) * np.log(relative) - 0.5 * linear * np.log(points)
    return result


def _weights(candidates: list[_Candidate]) -> Floats:
    level = np.array([candidate.log_weight for candidate in candidates])
    weight = np.exp(level - level.max())
    result: Floats = weight / weight.sum()
    return result


# ---------------------------------------------------------------------------- curves


def _ln_blocks(ratio: Floats | float, share: Floats | float, x: Floats) -> Floats:
    """Ln B at ln N = x, both relative to the mean size: the root of ln(B + e B^r) = x."""
    ratio, share = np.asarray(ratio), np.asarray(share)
    ln_share = np.log(np.maximum(share, 1e-300))
    shape = np.broadcast_shapes(x.shape, share.shape)
    if not share.any():
        return np.broadcast_to(x, shape)
    # Convex and increasing in ln B, so Newton's method converges to the root from the right.
    z = np.minimum(x, np.where(share > 0, (x - ln_share) / np.maximum(ratio, 0.02), np.inf))
    for _ in range(14):
        ln_total = np.logaddexp(z, ln_share + ratio * z)
        slope = np.exp(z - ln_total) + ratio * np.exp(ln_share + ratio * z - ln_total)
        z = np.maximum(z - (ln_total - x) / np.maximum(slope, 1e-12), -60.0)
    return z


def _evaluate_candidate(candidate: _Candidate, x: Floats, blocks: Floats, coefficients: Floats) -> Floats:
    """Ln f / 6N at ln N = x, with ``blocks`` = ln B; one row per row of coefficients."""
    if candidate.cell is None:
        if candidate.coefficients.shape == (1,):
            return np.log(coefficients) + np.zeros_like(x)
        return coefficients[:, :1] + coefficients[:, 1:] * x
    assert candidate.terms is not None
    k, has_t, has_u, free = candidate.terms
    ratio = candidate.cell.ratio
    base = np.exp(blocks - x)
    if k:
        base = base + k * candidate.cell.share * np.exp(ratio * blocks - x)
    columns = [base] * free + [np.exp((1 - ratio) * blocks - x)] * has_t + [np.exp(ratio * blocks - x)] * has_u
    total = 0 if free else base[None]
    for place, column in enumerate(columns):
        total = total + coefficients[:, place : place + 1] * column
    return np.log(np.maximum(total, 1e-12))


def _blocks_of_cells(candidates: list[_Candidate], x: Floats) -> dict[_Cell | None, Floats]:
    """Ln B at ln N = x, per cell of the candidates."""
    cells = list({candidate.cell: None for candidate in candidates if candidate.cell is not None})
    ratio, share = (np.array([[getattr(cell, name)] for cell in cells]) for name in ("ratio", "share"))
    rows = list(_ln_blocks(ratio, share, x)) if cells else list[Floats]()
    return {None: x, **dict(zip(cells, rows, strict=True))}


def _draw_curves(
    candidates: list[_Candidate],
    weights: Floats,
    x: Floats,
    blocks: dict[_Cell | None, Floats],
    draws: int,
    random: np.random.Generator,
) -> Floats:
    picked = np.sort(random.choice(len(candidates), size=draws, p=weights))
    curves = np.empty((draws, len(x)))
    for number in np.unique(picked):
        rows, candidate = np.flatnonzero(picked == number), candidates[number]
        sigma = np.sqrt(candidate.rss / random.chisquare(candidate.dof, len(rows)))
        size, axes = np.linalg.eigh(candidate.covariance)
        step = random.standard_normal((len(rows), len(size))) @ (axes * np.sqrt(np.maximum(size, 0))).T
        coefficients = candidate.coefficients + sigma[:, None] * step
        if candidate.cell is not None or len(candidate.coefficients) == 1:
            coefficients = np.maximum(coefficients, 0.02 * candidate.coefficients)
        curves[rows] = _evaluate_candidate(candidate, x, blocks[candidate.cell], coefficients)
    random.shuffle(curves)
    return curves


def _widen_draws(x: Floats, at: Floats, drawn: Floats, scatter: float, random: np.random.Generator) -> Floats:
    """Additional deviations for the draws (draws, sizes), so that they vary like a parabola through the sizes.

    Candidates with few terms pull the curve towards 6 N and underestimate its uncertainty.
    """
    dof = len(x) - 3
    if not len(drawn) or dof < 1 or scatter < _EXACT_SCATTER:
        return np.zeros((len(drawn), len(at)))
    scale = max(float(x.max()), -float(x.min()))
    # tanh is constant far beyond the sizes, so f ~ N holds there.
    basis_at_sizes, basis_at_points = (
        np.vander(np.tanh(values / scale), 3, increasing=True) for values in (x, at)
    )
    basis, triangle = np.linalg.qr(basis_at_sizes)
    variance = scatter**2 * len(x) / dof
    missing, axes = np.linalg.eigh(variance * np.eye(3) - np.cov((drawn @ basis).T, bias=True))
    scale_factor = np.sqrt(dof / random.chisquare(dof, (len(drawn), 1)))
    step = random.standard_normal((len(drawn), 3)) * scale_factor @ (axes * np.sqrt(np.maximum(missing, 0))).T
    deviations: Floats = step @ (basis_at_points @ np.linalg.inv(triangle)).T
    return deviations


def _fit_smoother(x: Floats, residuals: Floats, at: Floats) -> Floats | None:
    """Weights, shape (len(at), len(x)), of a local line through the residuals of the candidates.

    None if the residuals are scatter. Beyond the sizes, the value and the slope at the last size continue, and the
    slope decays within a bandwidth.
    """
    if len(x) < 12 or float(np.sqrt(np.mean(residuals**2))) < 1e-5:
        return None
    best, smallest = None, _MAX_ERROR_SHARE * float(np.mean(residuals**2))
    for width in _BANDWIDTHS:
        matrix = _local_lines(x, x, width)
        leverage = np.minimum(np.diag(matrix), 0.999)
        error = float(np.mean(((residuals - matrix @ residuals) / (1 - leverage)) ** 2))
        if error < smallest:
            best, smallest = width, error
    return None if best is None else _extend_local_lines(at, x, best)


def _extend_local_lines(at: Floats, x: Floats, width: float) -> Floats:
    inside = np.clip(at, x.min(), x.max())
    step = 1e-4 * width
    slope = (_local_lines(inside + step, x, width) - _local_lines(inside - step, x, width)) / (2 * step)
    decayed = -np.sign(at - inside) * width * np.expm1(-np.abs(at - inside) / width)
    smoother: Floats = _local_lines(inside, x, width) + decayed[:, None] * slope
    return smoother


def _local_lines(at: Floats, x: Floats, width: float) -> Floats:
    offset = at[:, None] - x
    weight = np.exp(-0.5 * (offset / width) ** 2) + 1e-12
    s0, s1, s2 = (np.sum(weight * offset**power, axis=1)[:, None] for power in (0, 1, 2))
    smoother: Floats = weight * (s2 - s1 * offset) / (s0 * s2 - s1**2)
    return smoother


def _means(values: Floats, group: Ints) -> Floats:
    result: Floats = np.bincount(group, values) / np.bincount(group)
    return result
