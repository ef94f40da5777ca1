"""Compare the compute that two studies need for the same loss.

::

    python compare-optimizers.py runs/compare-adamw runs/compare-muon

Fits L = E + A / N^alpha + B / D^beta to the runs of both studies by least squares on ln L, once with shared E,
alpha and beta and separate A and B, and once with a separate law for each study. The compute-equivalent gain at C
is C' / C: the first study needs C' for the lowest loss that the second study reaches with C. Both studies must
have the same cells (N, D, seeds), data and FLOPs counter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import f as f_distribution

from flops_fit_core import Study

DRAWS, LEVEL = 1000, 0.9
MAX_EXTRAPOLATION = 30.0
"""Largest factor between C' and the budgets; larger gains are reported as 0 or infinite."""


@dataclass(frozen=True)
class Runs:
    """Runs of both studies, one array per column. ``second`` is 1 for runs of the second study, otherwise 0."""

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    second: np.ndarray

    def take(self, rows: np.ndarray) -> Runs:
        return Runs(*(values[rows] for values in vars(self).values()))


def read_runs(folders: list[str]) -> Runs:
    """Completed runs of the cells and seeds that both studies have."""
    studies = [{(o.params, o.tokens, o.seed): o for o in Study.open(folder).observations} for folder in folders]
    shared_keys = sorted(set(studies[0]) & set(studies[1]))
    if len(shared_keys) < 15:
        raise SystemExit(
            f"{folders[0]} and {folders[1]} have {len(shared_keys)} completed runs with the same N, D and seed; "
            "the fit needs at least 15"
        )
    observations = [study[key] for study in studies for key in shared_keys]
    columns = [
        np.array([getattr(o, name) for o in observations]) for name in ("params", "tokens", "flops", "loss")
    ]
    return Runs(*columns, np.repeat([0, 1], len(shared_keys)))


# theta = (ln E, alpha, beta, ln A and ln B of the first study, ln A and ln B of the second study). N and D are in
# units of their geometric means, so that all parameters have similar magnitudes.


def ln_loss(theta: np.ndarray, runs: Runs, units: tuple[float, float]) -> np.ndarray:
    """Return ln L of each run by the law of its study."""
    ln_e, alpha, beta = theta[:3]
    ln_a, ln_b = theta[3 + 2 * runs.second], theta[4 + 2 * runs.second]
    n, d = np.log(runs.params / units[0]), np.log(runs.tokens / units[1])
    return np.log(np.exp(ln_e) + np.exp(ln_a - alpha * n) + np.exp(ln_b - beta * d))


def fit(runs: Runs, units: tuple[float, float], start: np.ndarray | None = None) -> np.ndarray:
    """Fit theta by least squares on ln L."""
    if start is None:
        level = np.log(runs.loss.mean())
        start = np.array([level - 0.5, 0.4, 0.4, level - 1.5, level - 1.5, level - 1.5, level - 1.5])
    return least_squares(lambda theta: ln_loss(theta, runs, units) - np.log(runs.loss), start).x


def residual_sum_of_squares(laws: list[np.ndarray], runs: Runs, units: tuple[float, float]) -> float:
    """Sum of the squared residuals of ln L over both studies."""
    fitted = np.where(runs.second == 1, ln_loss(laws[1], runs, units), ln_loss(laws[0], runs, units))
    return float(np.sum((fitted - np.log(runs.loss)) ** 2))


def lowest_loss(
    theta: np.ndarray, study: int, runs: Runs, units: tuple[float, float], compute: np.ndarray
) -> np.ndarray:
    """Lowest loss of study 0 or 1 at each C: the minimum over N with D = C / f(N).

    f, the FLOPs per token, is interpolated between the runs on logarithmic axes.
    """
    sizes, rows = np.unique(runs.params, return_index=True)
    params = np.geomspace(sizes[0], sizes[-1], 400)
    per_token = np.exp(np.interp(np.log(params), np.log(sizes), np.log(runs.flops[rows] / runs.tokens[rows])))
    tokens = compute[:, None] / per_token
    # ln_loss does not read the columns flops and loss.
    grid = Runs(np.broadcast_to(params, tokens.shape), tokens, tokens, tokens, np.full(tokens.shape, study))
    return np.exp(ln_loss(theta, grid, units).min(axis=1))


def compute_gains(
    first: np.ndarray, second: np.ndarray, runs: Runs, units: tuple[float, float], budgets: np.ndarray
) -> np.ndarray:
    """C' / C at each budget, from the laws of both studies.

    0 or infinite if C' is more than a factor ``MAX_EXTRAPOLATION`` beyond the budgets.
    """
    compute = np.geomspace(budgets[0] / MAX_EXTRAPOLATION, budgets[-1] * MAX_EXTRAPOLATION, 300)
    target = lowest_loss(second, 1, runs, units, budgets)
    # Losses fall with C, and np.interp needs ascending x: hence the signs.
    ln_compute = np.interp(
        -target, -lowest_loss(first, 0, runs, units, compute), np.log(compute), left=-np.inf, right=np.inf
    )
    return np.exp(ln_compute) / budgets


def fit_shared_and_separate(
    runs: Runs, units: tuple[float, float], start: np.ndarray | None = None
) -> list[list[np.ndarray]]:
    """The laws of both studies: first with shared E and exponents, then fitted separately."""
    shared = fit(runs, units, start)
    studies = [runs.take(np.flatnonzero(runs.second == study)) for study in (0, 1)]
    return [[shared, shared], [fit(study, units, shared) for study in studies]]


def bootstrap(runs: Runs, units: tuple[float, float], start: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Gains of resampled cells, of shape (draws, 2, budgets); the second axis is (shared, separate).

    A cell is drawn with all its seeds and in both studies together, because these runs share data and initial
    weights.
    """
    cells = np.unique(np.stack([runs.params, runs.tokens]), axis=1, return_inverse=True)[1].ravel()
    rows = [np.flatnonzero(cells == cell) for cell in range(cells.max() + 1)]
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(DRAWS):
        sample = runs.take(np.concatenate([rows[cell] for cell in rng.integers(len(rows), size=len(rows))]))
        gains.append(
            [compute_gains(*laws, runs, units, budgets) for laws in fit_shared_and_separate(sample, units, start)]
        )
    return np.array(gains)


def seed_noise(runs: Runs) -> tuple[float, int]:
    """Standard deviation of ln L between seeds of one cell, and its degrees of freedom."""
    keys = np.stack([runs.params, runs.tokens, runs.second])
    cells = np.unique(keys, axis=1, return_inverse=True)[1].ravel()
    means = np.bincount(cells, np.log(runs.loss)) / np.bincount(cells)
    freedom = len(cells) - len(means)
    return float(np.sqrt(np.sum((np.log(runs.loss) - means[cells]) ** 2) / max(1, freedom))), freedom


def main(folders: list[str]) -> None:
    runs = read_runs(folders)
    units = float(np.exp(np.log(runs.params).mean())), float(np.exp(np.log(runs.tokens).mean()))
    fits = fit_shared_and_separate(runs, units)
    shared = fits[0][0]
    print_law(folders, shared, units)
    print_fit(runs, *(residual_sum_of_squares(laws, runs, units) for laws in fits))
    budgets = np.geomspace(runs.flops.min(), runs.flops.max(), 4)
    draws = bootstrap(runs, units, shared, budgets)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="nearest")
    print(f"compute-equivalent gain of {folders[1]} over {folders[0]} ({LEVEL:.0%}, {DRAWS} draws of cells):")
    for row, name in enumerate(("shared E and exponents", "separate laws")):
        columns = zip(budgets, compute_gains(*fits[row], runs, units, budgets), low[row], high[row], strict=True)
        print(f"  {name}: " + "; ".join(f"C = {c:.2g}: {g:.2f} [{a:.2f}, {b:.2f}]" for c, g, a, b in columns))


def print_law(folders: list[str], theta: np.ndarray, units: tuple[float, float]) -> None:
    """Print the shared law, with A and B for N and D in their usual units."""
    alpha, beta = theta[1:3]
    print(f"E = {np.exp(theta[0]):.3f}, alpha = {alpha:.3f}, beta = {beta:.3f}, shared by both studies")
    for study, folder in enumerate(folders):
        a = np.exp(theta[3 + 2 * study] + alpha * np.log(units[0]))
        b = np.exp(theta[4 + 2 * study] + beta * np.log(units[1]))
        print(f"  {folder}: A = {a:.2f}, B = {b:.2f}")


def print_fit(runs: Runs, shared: float, separate: float) -> None:
    """Print an F test of shared against separate laws, and the noise between seeds.

    ``shared`` and ``separate`` are residual sums of squares: of 7 and of 10 parameters.
    """
    count = len(runs.loss)
    ratio = (shared - separate) / 3 / (separate / (count - 10))
    print(
        f"{count} runs; rms of ln L about the shared law {np.sqrt(shared / (count - 7)):.4f}, about separate laws "
        f"{np.sqrt(separate / (count - 10)):.4f} (F = {ratio:.1f}, p = "
        f"{f_distribution.sf(ratio, 3, count - 10):.2g})"
    )
    noise, freedom = seed_noise(runs)
    print(
        f"rms of ln L between seeds of one cell {noise:.4f}"
        if freedom
        else "one seed per cell: the intervals do not include seed noise"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
