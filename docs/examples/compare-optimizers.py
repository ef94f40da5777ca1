"""How much compute one sweep's recipe saves over another's: two studies, one law with shared exponents.

::

    python compare-optimizers.py runs/compare-adamw runs/compare-muon

Fits L = E + A / N^alpha + B / D^beta to the runs of both studies by least squares on ln L, with E, alpha and beta
in common and A and B of each study's own; beside it, a law for each study alone. The compute-equivalent gain at C
is C' / C, where the first study needs C' to reach the lowest loss that the second one reaches with C. Both studies
must have the same cells (N, D, seeds), data and FLOPs counter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import f as f_distribution

from flops_fit_core import Study

DRAWS, LEVEL = 1000, 0.9
WITHIN = 30.0


@dataclass(frozen=True)
class Runs:
    """Of both studies; ``second`` is 1 for those of the second one."""

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    second: np.ndarray

    def take(self, rows: np.ndarray) -> Runs:
        return Runs(*(values[rows] for values in vars(self).values()))


def read(folders: list[str]) -> Runs:
    """Completed runs of the cells and seeds that both studies have."""
    studies = [{(o.params, o.tokens, o.seed): o for o in Study.open(folder).observations} for folder in folders]
    both = sorted(set(studies[0]) & set(studies[1]))
    if len(both) < 15:
        raise SystemExit(
            f"{folders[0]} and {folders[1]} have {len(both)} runs of the same N, D and seed in common"
        )
    found = [study[key] for study in studies for key in both]
    columns = [np.array([getattr(o, name) for o in found]) for name in ("params", "tokens", "flops", "loss")]
    return Runs(*columns, np.repeat([0, 1], len(both)))


# theta = (ln E, alpha, beta, ln A and ln B of the first study, ln A and ln B of the second), with N and D in units
# of their geometric means, so that all are of a size.


def ln_loss(theta: np.ndarray, runs: Runs, units: tuple[float, float]) -> np.ndarray:
    ln_e, alpha, beta = theta[:3]
    ln_a, ln_b = theta[3 + 2 * runs.second], theta[4 + 2 * runs.second]
    n, d = np.log(runs.params / units[0]), np.log(runs.tokens / units[1])
    return np.log(np.exp(ln_e) + np.exp(ln_a - alpha * n) + np.exp(ln_b - beta * d))


def fit(runs: Runs, units: tuple[float, float], start: np.ndarray | None = None) -> np.ndarray:
    if start is None:
        level = np.log(runs.loss.mean())
        start = np.array([level - 0.5, 0.4, 0.4, level - 1.5, level - 1.5, level - 1.5, level - 1.5])
    found = least_squares(lambda theta: ln_loss(theta, runs, units) - np.log(runs.loss), start)
    return found.x


def squares(laws: list[np.ndarray], runs: Runs, units: tuple[float, float]) -> float:
    """Of the residuals of both studies."""
    fitted = np.where(runs.second == 1, ln_loss(laws[1], runs, units), ln_loss(laws[0], runs, units))
    return float(np.sum((fitted - np.log(runs.loss)) ** 2))


def lowest(
    theta: np.ndarray, which: int, runs: Runs, units: tuple[float, float], compute: np.ndarray
) -> np.ndarray:
    """The lowest loss of a study at each C: of the best N with D = C / f(N), f read off the runs."""
    sizes, first = np.unique(runs.params, return_index=True)
    params = np.geomspace(sizes[0], sizes[-1], 400)
    per_token = np.exp(np.interp(np.log(params), np.log(sizes), np.log(runs.flops[first] / runs.tokens[first])))
    tokens = compute[:, None] / per_token
    grid = Runs(np.broadcast_to(params, tokens.shape), tokens, tokens, tokens, np.full(tokens.shape, which))
    return np.exp(ln_loss(theta, grid, units).min(axis=1))


def gains(
    first: np.ndarray, second: np.ndarray, runs: Runs, units: tuple[float, float], budgets: np.ndarray
) -> np.ndarray:
    """C' / C at each budget, by the law of each study; 0 and infinite where C' is more than a factor ``WITHIN``
    beyond the budgets."""
    compute = np.geomspace(budgets[0] / WITHIN, budgets[-1] * WITHIN, 300)
    reached = lowest(second, 1, runs, units, budgets)
    needed = np.interp(
        -reached, -lowest(first, 0, runs, units, compute), np.log(compute), left=-np.inf, right=np.inf
    )
    return np.exp(needed) / budgets


def both_ways(runs: Runs, units: tuple[float, float], start: np.ndarray | None = None) -> list[list[np.ndarray]]:
    """The law of each study: with shared exponents, and alone."""
    shared = fit(runs, units, start)
    parts = [runs.take(np.flatnonzero(runs.second == which)) for which in (0, 1)]
    return [[shared, shared], [fit(part, units, shared) for part in parts]]


def bootstrap(runs: Runs, units: tuple[float, float], start: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Gains (draws, ways, budgets) of draws of whole cells, with all their seeds and in both studies at once."""
    cell = np.unique(np.stack([runs.params, runs.tokens]), axis=1, return_inverse=True)[1].ravel()
    rows = [np.flatnonzero(cell == one) for one in range(cell.max() + 1)]
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        some = runs.take(np.concatenate([rows[one] for one in random.integers(len(rows), size=len(rows))]))
        drawn.append([gains(*laws, runs, units, budgets) for laws in both_ways(some, units, start)])
    return np.array(drawn)


def seed_noise(runs: Runs) -> tuple[float, int]:
    """Standard deviation of ln L between seeds of one cell, and its degrees of freedom."""
    keys = np.stack([runs.params, runs.tokens, runs.second])
    cell = np.unique(keys, axis=1, return_inverse=True)[1].ravel()
    means = np.bincount(cell, np.log(runs.loss)) / np.bincount(cell)
    freedom = len(cell) - len(means)
    return float(np.sqrt(np.sum((np.log(runs.loss) - means[cell]) ** 2) / max(1, freedom))), freedom


def main(folders: list[str]) -> None:
    runs = read(folders)
    units = float(np.exp(np.log(runs.params).mean())), float(np.exp(np.log(runs.tokens).mean()))
    ways = both_ways(runs, units)
    shared = ways[0][0]
    print_law(folders, shared, units)
    print_fit(runs, *(squares(laws, runs, units) for laws in ways))
    budgets = np.geomspace(runs.flops.min(), runs.flops.max(), 4)
    drawn = bootstrap(runs, units, shared, budgets)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="nearest")
    print(
        f"compute-equivalent gain of {folders[1]} over {folders[0]} ({LEVEL:.0%}, {DRAWS} draws of whole cells):"
    )
    for way, name in enumerate(("shared E and exponents", "each study's own")):
        found = zip(budgets, gains(*ways[way], runs, units, budgets), low[way], high[way], strict=True)
        print(f"  {name}: " + "; ".join(f"C = {c:.2g}: {g:.2f} [{a:.2f}, {b:.2f}]" for c, g, a, b in found))


def print_law(folders: list[str], theta: np.ndarray, units: tuple[float, float]) -> None:
    alpha, beta = theta[1:3]
    print(f"E = {np.exp(theta[0]):.3f}, alpha = {alpha:.3f}, beta = {beta:.3f} of both")
    for which, folder in enumerate(folders):
        a = np.exp(theta[3 + 2 * which] + alpha * np.log(units[0]))
        b = np.exp(theta[4 + 2 * which] + beta * np.log(units[1]))
        print(f"  {folder}: A = {a:.2f}, B = {b:.2f}")


def print_fit(runs: Runs, shared: float, own: float) -> None:
    """Whether the runs bear the shared exponents, and how much of the scatter is between seeds."""
    count = len(runs.loss)
    ratio = (shared - own) / 3 / (own / (count - 10))
    print(
        f"{count} runs; rms of ln L about the law {np.sqrt(shared / (count - 7)):.4f}, with E and exponents of "
        f"each study's own {np.sqrt(own / (count - 10)):.4f} (F = {ratio:.1f}, p = "
        f"{f_distribution.sf(ratio, 3, count - 10):.2g})"
    )
    noise, freedom = seed_noise(runs)
    print(
        f"between seeds of one cell {noise:.4f}"
        if freedom
        else "one seed a cell: the interval holds no seed noise"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
