"""Starting points by variable projection (Golub and Pereyra 1973).

At fixed exponents the law is linear in E, A and B. Their non-negative least squares of the relative error (weights
1 / L^2) on a grid over (alpha, beta) use shared Gram products, so the grid costs a few matrix products. Newton
starts at its local minima.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from flops_fit_core.fitting.data import Floats

EXPONENT_GRID = np.geomspace(0.03, 2.2, 16)
"""Grid of exponents for each of the two terms."""


def starting_points(u: Floats, v: Floats, y: Floats, weights: Floats | None = None, count: int = 4) -> Floats:
    """The best ``count`` local minima of the projected objective, best first, as rows theta.

    ``u`` and ``v`` are ln N and ln D minus their means, ``y`` is ln L; all have shape (n,), as the weights.
    """
    rss, linear = _project_grid(u, v, y, weights)
    padded = np.pad(rss, 1, constant_values=np.inf)
    neighbours = [padded[1 + i : 17 + i, 1 + j : 17 + j] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    lowest = np.flatnonzero((rss <= np.min(neighbours, axis=0)).ravel())
    lowest = lowest[np.argsort(rss.ravel()[lowest])][:count]
    first, second = np.unravel_index(lowest, rss.shape)
    e, a, b = linear[first, second].T
    # A term at 0 has no gradient in its exponent, so start it slightly above.
    min_term = 1e-3 * float(np.exp(y.mean()))
    ln_a, ln_b = np.log(np.maximum(a, min_term)), np.log(np.maximum(b, min_term))
    return np.stack([e, ln_a, EXPONENT_GRID[first], ln_b, EXPONENT_GRID[second]], axis=1)


def _project_grid(u: Floats, v: Floats, y: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    """Least sums of squared relative errors (16, 16), and E, A', B' (16, 16, 3)."""
    weight = np.exp(-y)
    root = np.ones_like(weight) if weights is None else np.sqrt(weights)
    constant = weight * root
    a = np.exp(-EXPONENT_GRID[:, None] * u) * constant
    b = np.exp(-EXPONENT_GRID[:, None] * v) * constant
    shape = (len(EXPONENT_GRID), len(EXPONENT_GRID))
    gram = np.empty((*shape, 3, 3))
    gram[..., 0, 0] = constant @ constant
    gram[..., 0, 1] = gram[..., 1, 0] = (a @ constant)[:, None]
    gram[..., 0, 2] = gram[..., 2, 0] = (b @ constant)[None, :]
    gram[..., 1, 1] = (a * a).sum(axis=1)[:, None]
    gram[..., 2, 2] = (b * b).sum(axis=1)[None, :]
    gram[..., 1, 2] = gram[..., 2, 1] = a @ b.T
    right = np.empty((*shape, 3))
    right[..., 0] = constant @ root
    right[..., 1] = (a @ root)[:, None]
    right[..., 2] = (b @ root)[None, :]
    return _solve_nonnegative(gram, right, float(root @ root))


def _solve_nonnegative(gram: Floats, right: Floats, total: float) -> tuple[Floats, Floats]:
    """Non-negative least squares in three unknowns, vectorised over problems: tries every set of free unknowns."""
    best = np.full(right.shape[:-1], total)
    solution = np.zeros_like(right)
    for free in [subset for size in (3, 2, 1) for subset in combinations(range(3), size)]:
        index = np.array(free)
        gram_part, target = gram[..., index[:, None], index], right[..., index]
        ridge = 1e-13 * np.einsum("...ii->...i", gram_part)
        solved = np.linalg.solve(gram_part + ridge[..., None] * np.eye(len(free)), target[..., None])[..., 0]
        rss = total - (solved * target).sum(axis=-1)
        better = (solved >= 0).all(axis=-1) & (rss < best)
        best = np.where(better, rss, best)
        full = np.zeros_like(right)
        full[..., index] = solved
        solution = np.where(better[..., None], full, solution)
    return best, solution
