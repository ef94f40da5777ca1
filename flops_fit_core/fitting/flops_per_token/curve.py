"""A smooth curve of FLOPs per token f(N) through the sizes of a table, and how far f may lie off it.

A transformer of width d has B ~ L d^2 parameters in its L blocks. Along a ladder with d ~ B^r, attention costs
L d ~ B^(1 - r) FLOPs per token, and embeddings and head have V d ~ B^r parameters, of which N counts all, some or
none. With every matrix product counted,

    N = B + e B^r,    f = c (B + k e B^r) + t B^(1 - r) + u B^r,    c, e, t, u >= 0,

so f ~ N for large N by every convention of N. k is 0, 1/2 or 1: the share of the counted embeddings that is
multiplied with. c is 6, or free (a count of other operations, a mixture of experts).

Nothing is selected: each (r, e) of a grid and each choice of terms has a weight by the Bayesian information
criterion (Schwarz 1978), next to f = 6 N, f = c N and a power law. The curve is their weighted mean, and each draw
takes its own. Noise is the scatter of sizes about the curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats, Ints

_RATIOS = np.array([0.0, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.37, 0.41, 0.45, 0.5])
"""Values of r: depth alone varies at 0, width and depth together at 1/3, width alone at 1/2."""
_LN_SHARES: Floats = np.linspace(np.log(0.01), np.log(30.0), 20)
"""Ln of values of e B^r / B at the sizes' mean."""
_SHARE_STEP, _SHARE_SPAN = float(_LN_SHARES[1] - _LN_SHARES[0]), float(np.ptp(_LN_SHARES))
_ROUNDS = 9
"""Times that the grid may narrow around its best cell."""
_ROUNDING = 1e-7
"""Relative scatter below which two curves are equally good."""
_POWER_LAW = 0.02
"""Prior weight of a power law, which no count of FLOPs is far beyond the sizes."""
_EXACT = 1e-5
"""Relative scatter below which the grid need not narrow any further."""
_FAR = 12.0
"""Log weight below the best at which a candidate is left out."""
_FREE = 0.1
"""Prior weight of c other than 6: every dense model whose products are all counted has 6."""
_NEGLIGIBLE = 1e-4
"""Weight below which a candidate is left out."""
_BANDWIDTHS = (0.25, 0.5, 1.0)
"""In ln N, for what the candidates leave over."""
_BETTER = 0.1
"""Share of the squared cross-validated error below which the smoothed rest is added."""
_MOST = 48
"""Points of a table beyond which neighbours are merged."""

# (k, t, u, c is free): which terms a candidate has.
_TERMS = [
    (k, t, u, free)
    for k, t, u in [(0.0, 1, 0), (0.0, 0, 1), (0.0, 1, 1), (0.5, 0, 0), (0.5, 1, 0), (1.0, 1, 0), (0.0, 0, 0)]
    for free in (False, True)
]


@dataclass(frozen=True)
class _Cell:
    """One value of (r, e)."""

    ratio: float
    share: float


@dataclass(frozen=True)
class _Candidate:
    """A least-squares fit of f / 6N by columns that depend on N only."""

    cell: _Cell | None
    """None: f = c N, or a power law."""
    terms: tuple[float, int, int, bool] | None
    log_weight: float
    coefficients: Floats
    covariance: Floats
    """Of the coefficients, for scatter of variance 1."""
    rss: float
    dof: int


@dataclass(frozen=True)
class FlopsCurve:
    """The curve at the ln N that were asked for."""

    ln_flops: Floats
    draws: Floats
    """Ln f of curves that the sizes allow as well, shape (draws, points)."""


def fit_curve(ln_params: Floats, ln_flops: Floats, at: Floats, draws: int = 0, seed: int = 0) -> FlopsCurve:
    """The curve through distinct sizes, evaluated at ``at``. Every size counts once."""
    centre = float(ln_params.mean())
    x, excess = ln_params - centre, ln_flops - ln_params - np.log(6)
    every_x, every_excess = x, excess
    if len(x) > _MOST:
        group = np.argsort(np.argsort(x, kind="stable"), kind="stable") * _MOST // len(x)
        x, excess = _means(x, group), _means(excess, group)
    candidates = _candidates(x, excess)
    weights = _weights(candidates)
    keep = weights > _NEGLIGIBLE
    kept = [candidate for candidate, used in zip(candidates, keep, strict=True) if used]
    weights = weights[keep] / weights[keep].sum()
    points = np.concatenate([at - centre, x, every_x])
    blocks = _blocks_of_cells(kept, points)
    mean = np.zeros_like(points)
    for one, weight in zip(kept, weights, strict=True):
        mean += weight * _curve(one, points, blocks[one.cell], one.coefficients[None])[0]
    random = np.random.default_rng(seed)
    drawn = _draw(kept, weights, points, blocks, draws, random)
    inner, own = slice(len(at), len(at) + len(x)), slice(len(at) + len(x), None)
    smoother = _smoother(x, excess - mean[inner], points)
    if smoother is not None:
        mean = mean + smoother @ (excess - mean[inner])
        drawn = drawn + (excess - drawn[:, inner]) @ smoother.T
    scatter = float(np.sqrt(np.mean((every_excess - mean[own]) ** 2)))
    drawn = drawn + _unshrunk(every_x, points, drawn[:, own], scatter, random)
    base = at + np.log(6)
    # The mean of the draws is the curve: what differs is rounding of the weights.
    drawn = drawn[:, : len(at)] - (drawn[:, : len(at)].mean(axis=0) if draws else 0.0) + mean[: len(at)]
    return FlopsCurve(base + mean[: len(at)], base + drawn)


# ---------------------------------------------------------------------------- candidates


def _candidates(x: Floats, excess: Floats) -> list[_Candidate]:
    y = np.exp(-excess)
    """6 N / f: columns times it are relative to f."""
    least = float(min(np.sum((1 - y) ** 2), np.sum((1 - y * y.sum() / (y @ y)) ** 2)))
    plain = [_proportional(y, free, least) for free in (False, True)]
    if len(x) > 2:
        plain.append(_power_law(np.stack([np.ones_like(x), x], axis=1), excess, least))
    grid = _Grid(_RATIOS, _LN_SHARES, 0.05, _SHARE_STEP)
    log_prior, physical = 0.0, list[_Candidate]()
    for _ in range(_ROUNDS):
        physical = _physical(grid.cells(), x, y, log_prior, least)
        weights = _weights([*plain, *physical])
        by_cell: dict[_Cell, float] = {}
        for candidate, weight in zip(physical, weights[len(plain) :], strict=True):
            assert candidate.cell is not None
            by_cell[candidate.cell] = by_cell.get(candidate.cell, 0.0) + weight
        best = max(by_cell, key=lambda cell: by_cell[cell], default=None)
        if best is None or by_cell[best] < 0.3 or min(one.rss for one in physical) < len(x) * _EXACT**2:
            break
        grid, narrower = grid.around(best)
        log_prior += np.log(narrower)
    return [*plain, *physical]


@dataclass(frozen=True)
class _Grid:
    """Values of r and of ln e, and the distance of neighbours."""

    ratios: Floats
    ln_shares: Floats
    ratio_step: float
    share_step: float

    def cells(self) -> list[_Cell]:
        """All pairs, and each r without embeddings in N."""
        shares = [0.0, *np.exp(self.ln_shares).tolist()]
        return [_Cell(float(ratio), share) for ratio in self.ratios for share in shares]

    def around(self, best: _Cell) -> tuple[_Grid, float]:
        """A grid of half the distances around a cell, as wide as four of the old ones; and the share of the prior
        that it holds. A cell at the edge moves the grid and leaves its distances."""
        ln_share = np.log(best.share) if best.share else float(np.median(self.ln_shares))
        near = np.arange(-4, 5)
        inside = self.ln_shares[0] < ln_share < self.ln_shares[-1]
        share_step = self.share_step / 2 if inside or not best.share else self.share_step
        inside = self.ratios[0] < best.ratio < self.ratios[-1] or best.ratio in (0.0, 0.5)
        ratio_step = self.ratio_step / 2 if inside else self.ratio_step
        ratios = np.unique(np.clip(best.ratio + ratio_step * near, 0.0, 0.5))
        narrower = min(1.0, 8 * ratio_step / 0.5) * min(1.0, 8 * share_step / _SHARE_SPAN)
        wider = min(1.0, np.ptp(self.ratios) / 0.5)
        wider *= min(1.0, np.ptp(self.ln_shares) / _SHARE_SPAN)
        ln_shares: Floats = (ln_share + share_step * near).astype(np.float64)
        return _Grid(ratios, ln_shares, ratio_step, share_step), float(narrower / wider)


def _physical(cells: list[_Cell], x: Floats, y: Floats, log_prior: float, least: float) -> list[_Candidate]:
    ratio = np.array([cell.ratio for cell in cells])[:, None]
    share = np.array([cell.share for cell in cells])[:, None]
    blocks = _ln_blocks(ratio, share, x)
    body, table, attention = (np.exp(part - x) * y for part in (blocks, ratio * blocks, (1 - ratio) * blocks))
    found = []
    for terms in _TERMS:
        k, has_t, has_u, free = terms
        base = body + k * share * table
        columns = [base] * free + [attention] * has_t + [table] * has_u
        if len(columns) >= len(x):
            continue
        coefficients, covariance, rss = _least_squares(columns, np.ones_like(base) if free else 1 - base)
        usable = (coefficients > 0).all(axis=1) & ((share[:, 0] > 0) | (k == 0 and bool(has_t or has_u)))
        prior = log_prior - np.log(len(cells) * len(_TERMS)) + free * np.log(_FREE)
        weight = prior + _log_weight(rss, len(x), len(columns), least)
        found.append((terms, np.where(usable, weight, -np.inf), coefficients, covariance, rss))
    highest = max((each[1].max() for each in found), default=-np.inf)
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
        for terms, weight, coefficients, covariance, rss in found
        for row in np.flatnonzero(np.isfinite(weight) & (weight > highest - _FAR))
    ]


def _least_squares(columns: list[Floats], target: Floats) -> tuple[Floats, Floats, Floats]:
    """Coefficients, their covariance for scatter of variance 1, and the sum of squares: one fit for each row."""
    if not columns:
        return np.empty((len(target), 0)), np.empty((len(target), 0, 0)), (target**2).sum(axis=1)
    design = np.stack(columns, axis=2)
    size = np.sqrt((design**2).sum(axis=1))
    design = design / size[:, None, :]
    inverse = np.linalg.pinv(design.swapaxes(1, 2) @ design, rcond=1e-13, hermitian=True)
    solved = (inverse @ (design.swapaxes(1, 2) @ target[:, :, None]))[..., 0]
    rss = ((target - (design @ solved[:, :, None])[..., 0]) ** 2).sum(axis=1)
    return solved / size, inverse / size[:, :, None] / size[:, None, :], rss


def _proportional(y: Floats, free: bool, least: float) -> _Candidate:
    """F = c N, with c = 6 unless it is free."""
    coefficients, covariance, rss = _least_squares([y[None]], np.ones_like(y)[None])
    if not free:
        coefficients, covariance, rss = np.ones((1, 1)), np.zeros((1, 1, 1)), ((1 - y) ** 2).sum(keepdims=True)
    weight = float(_log_weight(rss, len(y), int(free), least)[0] + free * np.log(_FREE))
    dof = max(1, len(y) - int(free))
    return _Candidate(None, None, weight, coefficients[0], covariance[0], float(rss[0]), dof)


def _power_law(design: Floats, excess: Floats, least: float) -> _Candidate:
    covariance = np.linalg.inv(design.T @ design)
    coefficients: Floats = np.asarray(covariance @ design.T @ excess, dtype=np.float64)
    rss = float(((excess - design @ coefficients) ** 2).sum())
    weight = float(np.log(_POWER_LAW) + _log_weight(np.array(rss), len(excess), 2, least))
    return _Candidate(None, None, weight, coefficients, covariance.astype(np.float64), rss, len(excess) - 2)


def _log_weight(rss: Floats, points: int, linear: int, least: float) -> Floats:
    """A criterion of Bayes factors of regression (Liang et al. 2008): scatter is judged by the degrees of freedom
    that are left, relative to that about f = c N, so that few sizes are not passed through by many terms."""
    relative = (rss / points + _ROUNDING**2) / (least / points + _ROUNDING**2)
    out: Floats = -0.5 * max(0, points - linear) * np.log(relative) - 0.5 * linear * np.log(points)
    return out


def _weights(candidates: list[_Candidate]) -> Floats:
    level = np.array([candidate.log_weight for candidate in candidates])
    weight = np.exp(level - level.max())
    out: Floats = weight / weight.sum()
    return out


# ---------------------------------------------------------------------------- curves


def _ln_blocks(ratio: Floats | float, share: Floats | float, x: Floats) -> Floats:
    """Ln B at ln N = x, both less the sizes' mean: the root of ln(B + e B^r) = x."""
    ratio, share = np.asarray(ratio), np.asarray(share)
    ln_share = np.log(np.maximum(share, 1e-300))
    shape = np.broadcast_shapes(x.shape, share.shape)
    if not share.any():
        return np.broadcast_to(x, shape)
    # Convex and increasing in ln B, so that Newton's method comes down to the root from the right.
    z = np.minimum(x, np.where(share > 0, (x - ln_share) / np.maximum(ratio, 0.02), np.inf))
    for _ in range(14):
        both = np.logaddexp(z, ln_share + ratio * z)
        slope = np.exp(z - both) + ratio * np.exp(ln_share + ratio * z - both)
        z = np.maximum(z - (both - x) / np.maximum(slope, 1e-12), -60.0)
    return z


def _curve(candidate: _Candidate, x: Floats, blocks: Floats, coefficients: Floats) -> Floats:
    """Ln f / 6N at ln N = x, where ``blocks`` is ln B; one row for each row of coefficients."""
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
    """Ln B at ln N = x, for every cell that a candidate has."""
    cells = list({one.cell: None for one in candidates if one.cell is not None})
    ratio, share = (np.array([[getattr(cell, name)] for cell in cells]) for name in ("ratio", "share"))
    rows = list(_ln_blocks(ratio, share, x)) if cells else list[Floats]()
    return {None: x, **dict(zip(cells, rows, strict=True))}


def _draw(
    candidates: list[_Candidate],
    weights: Floats,
    x: Floats,
    blocks: dict[_Cell | None, Floats],
    draws: int,
    random: np.random.Generator,
) -> Floats:
    picked = np.sort(random.choice(len(candidates), size=draws, p=weights))
    out = np.empty((draws, len(x)))
    for number in np.unique(picked):
        rows, one = np.flatnonzero(picked == number), candidates[number]
        sigma = np.sqrt(one.rss / random.chisquare(one.dof, len(rows)))
        size, axes = np.linalg.eigh(one.covariance)
        step = random.standard_normal((len(rows), len(size))) @ (axes * np.sqrt(np.maximum(size, 0))).T
        coefficients = one.coefficients + sigma[:, None] * step
        if one.cell is not None or len(one.coefficients) == 1:
            coefficients = np.maximum(coefficients, 0.02 * one.coefficients)
        out[rows] = _curve(one, x, blocks[one.cell], coefficients)
    random.shuffle(out)
    return out


def _unshrunk(x: Floats, at: Floats, drawn: Floats, scatter: float, random: np.random.Generator) -> Floats:
    """Further deviations for the draws (draws, sizes), so that they vary as much as a parabola through the sizes.

    Candidates with few terms draw the curve towards 6 N, and are surer than the sizes are.
    """
    dof = len(x) - 3
    if not len(drawn) or dof < 1 or scatter < _EXACT:
        return np.zeros((len(drawn), len(at)))
    half = max(float(x.max()), -float(x.min()))
    # Beyond the sizes tanh levels off: f ~ N.
    own, wanted = (np.vander(np.tanh(values / half), 3, increasing=True) for values in (x, at))
    basis, triangle = np.linalg.qr(own)
    variance = scatter**2 * len(x) / dof
    missing, axes = np.linalg.eigh(variance * np.eye(3) - np.cov((drawn @ basis).T, bias=True))
    unknown = np.sqrt(dof / random.chisquare(dof, (len(drawn), 1)))
    step = random.standard_normal((len(drawn), 3)) * unknown @ (axes * np.sqrt(np.maximum(missing, 0))).T
    out: Floats = step @ (wanted @ np.linalg.inv(triangle)).T
    return out


def _smoother(x: Floats, rest: Floats, at: Floats) -> Floats | None:
    """Weights, shape (len(at), len(x)), of a local line through what the candidates leave over; None where that is
    scatter. Beyond the sizes its value at the last one holds."""
    if len(x) < 12 or float(np.sqrt(np.mean(rest**2))) < 1e-5:
        return None
    best, smallest = None, _BETTER * float(np.mean(rest**2))
    for width in _BANDWIDTHS:
        matrix = _local_lines(x, x, width)
        leverage = np.minimum(np.diag(matrix), 0.999)
        error = float(np.mean(((rest - matrix @ rest) / (1 - leverage)) ** 2))
        if error < smallest:
            best, smallest = width, error
    return None if best is None else _local_lines(np.clip(at, x.min(), x.max()), x, best)


def _local_lines(at: Floats, x: Floats, width: float) -> Floats:
    away = at[:, None] - x
    weight = np.exp(-0.5 * (away / width) ** 2) + 1e-12
    s0, s1, s2 = (np.sum(weight * away**power, axis=1)[:, None] for power in (0, 1, 2))
    out: Floats = weight * (s2 - s1 * away) / (s0 * s2 - s1**2)
    return out


def _means(values: Floats, group: Ints) -> Floats:
    out: Floats = np.bincount(group, values) / np.bincount(group)
    return out
