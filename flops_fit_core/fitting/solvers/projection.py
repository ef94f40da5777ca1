"""Starting points by variable projection (Golub and Pereyra 1973).

At given exponents the law is linear in E, A and B. On a grid over (alpha, beta) their non-negative least
squares of the relative error (weights 1 / L^2) come from shared Gram products, so the whole grid costs a
few matrix products; its local minima are where Newton starts.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.solvers.newton import Problem

GRID = np.geomspace(0.03, 2.2, 16)
"""Exponents tried for each of the two terms."""


def starting_points(problem: Problem, count: int = 4) -> Floats:
    """The best ``count`` local minima of the projected objective, best first, as rows theta.

    For one fit: ``y`` and ``weights`` of shape (n,).
    """
    rss, linear = _grid(problem)
    padded = np.pad(rss, 1, constant_values=np.inf)
    around = [padded[1 + i : 17 + i, 1 + j : 17 + j] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    lowest = np.flatnonzero((rss <= np.min(around, axis=0)).ravel())
    lowest = lowest[np.argsort(rss.ravel()[lowest])][:count]
    first, second = np.unravel_index(lowest, rss.shape)
    e, a, b = linear[first, second].T
    # A term at 0 has no exponent to improve; start it where Newton can still see it.
    least = 1e-3 * float(np.exp(problem.y.mean()))
    ln_a, ln_b = np.log(np.maximum(a, least)), np.log(np.maximum(b, least))
    return np.stack([e, ln_a, GRID[first], ln_b, GRID[second]], axis=1)


def _grid(problem: Problem) -> tuple[Floats, Floats]:
    """Least sum of squared relative errors (16, 16) and its E, A', B' (16, 16, 3)."""
    weight = np.exp(-problem.y)
    root = np.ones_like(weight) if problem.weights is None else np.sqrt(problem.weights)
    one = weight * root
    a = np.exp(-GRID[:, None] * problem.u) * one
    b = np.exp(-GRID[:, None] * problem.v) * one
    shape = (len(GRID), len(GRID))
    gram = np.empty((*shape, 3, 3))
    gram[..., 0, 0] = one @ one
    gram[..., 0, 1] = gram[..., 1, 0] = (a @ one)[:, None]
    gram[..., 0, 2] = gram[..., 2, 0] = (b @ one)[None, :]
    gram[..., 1, 1] = (a * a).sum(axis=1)[:, None]
    gram[..., 2, 2] = (b * b).sum(axis=1)[None, :]
    gram[..., 1, 2] = gram[..., 2, 1] = a @ b.T
    right = np.empty((*shape, 3))
    right[..., 0] = one @ root
    right[..., 1] = (a @ root)[:, None]
    right[..., 2] = (b @ root)[None, :]
    return _nonnegative(gram, right, float(root @ root))


def _nonnegative(gram: Floats, right: Floats, total: float) -> tuple[Floats, Floats]:
    """Non-negative least squares of many problems in three unknowns, by trying every set of free ones."""
    best = np.full(right.shape[:-1], total)
    answer = np.zeros_like(right)
    for free in [set_ for size in (3, 2, 1) for set_ in combinations(range(3), size)]:
        index = np.array(free)
        part, wanted = gram[..., index[:, None], index], right[..., index]
        ridge = 1e-13 * np.einsum("...ii->...i", part)
        solved = np.linalg.solve(part + ridge[..., None] * np.eye(len(free)), wanted[..., None])[..., 0]
        rss = total - (solved * wanted).sum(axis=-1)
        better = (solved >= 0).all(axis=-1) & (rss < best)
        best = np.where(better, rss, best)
        full = np.zeros_like(right)
        full[..., index] = solved
        answer = np.where(better[..., None], full, answer)
    return best, answer
