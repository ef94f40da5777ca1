"""IsoFLOP profiles: runs grouped by budget, a curve in ln N per budget, and its minimum.

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2). The parabola is fitted to ln L, or to L with
``response="loss"``. Seed noise is about a constant share of the loss, so ln L has the same noise level at all
budgets and residuals can be pooled. The minima in ln L and in L agree to within 0.05% of N on Chinchilla's
surface, even on grids that reach x16 to each side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs
from flops_fit_core.records import ProfileMinimum

Response = Literal["log-loss", "loss"]
Shape = Literal["parabola", "cubic", "akima"]
Verdict = Literal["interior", "below", "above", "not convex", "too few sizes"]

MIN_SIZES: dict[Shape, int] = {"parabola": 3, "cubic": 4, "akima": 5}
"""Sizes per budget that each shape requires."""
MAX_EXCESS = 0.2
"""Runs with a loss further above the lowest of their budget, relative to it, are far from the optimum: they hardly
locate it, and no curve of few parameters holds that far."""
MIN_NEAR_SIZES = 5
"""At least this many sizes of a budget, if it has them, count as near its optimum."""
GROUP_WIDTH = 1.2
"""Runs without a nominal budget form a group if their C lies within this factor."""


@dataclass(frozen=True)
class Group:
    """The runs of a budget."""

    budget: float
    rows: Ints


def group_by_budget(runs: Runs) -> list[Group]:
    """Groups in ascending order of budget: by nominal budget, or by clusters of C for runs without one.

    A cluster spans at most a factor of 1.2 in C, and its budget is the geometric mean.
    """
    groups = [Group(float(c), np.flatnonzero(runs.budget == c)) for c in np.unique(runs.budget) if np.isfinite(c)]
    unassigned = np.flatnonzero(~np.isfinite(runs.budget))
    unassigned = unassigned[np.argsort(runs.flops[unassigned], kind="stable")]
    while len(unassigned):
        count = int(np.searchsorted(runs.flops[unassigned], runs.flops[unassigned[0]] * GROUP_WIDTH, side="right"))
        rows, unassigned = np.sort(unassigned[:count]), unassigned[count:]
        groups.append(Group(float(np.exp(np.log(runs.flops[rows]).mean())), rows))
    return sorted(groups, key=lambda group: group.budget)


def move_to_budgets(runs: Runs, groups: list[Group]) -> Floats:
    """Ln L of every run, moved from its C to its nominal budget at constant N.

    The slope d ln L / d ln C at constant N comes from a quadratic surface in (ln N, ln C) through all runs. A
    run that misses its budget by 1% is off by only about a tenth of that in loss. But all runs of a size are off
    by the same amount, which would move the minimum.
    """
    ln_loss, nominal = np.log(runs.loss), np.empty(len(runs))
    for group in groups:
        nominal[group.rows] = np.log(group.budget)
    offset = np.log(runs.flops) - nominal
    if float(np.max(np.abs(offset))) < 1e-12 or len(groups) < 2:
        return ln_loss
    x, z = np.log(runs.params), np.log(runs.flops)
    x, z = x - x.mean(), z - z.mean()
    columns = [np.ones_like(x), x, x**2, z, x * z] + ([z**2] if len(groups) > 2 else [])
    if len(runs) <= len(columns):
        columns = [np.ones_like(x), x, x**2, z]
    coefficients = np.linalg.lstsq(np.stack(columns, axis=1), ln_loss, rcond=None)[0]
    cross_term, square_term = (
        coefficients[4] if len(columns) > 4 else 0.0,
        coefficients[5] if len(columns) > 5 else 0.0,
    )
    # Slope at the midpoint between the run and its budget.
    slope = coefficients[3] + cross_term * x + 2 * square_term * (z - offset / 2)
    moved: Floats = ln_loss - slope * offset
    return moved


@dataclass(frozen=True)
class Profile:
    """One budget's curve through response against u = ln N - centre."""

    budget: float
    rows: Ints
    """Runs near the optimum, or all runs for Akima."""
    far: Ints
    """The other runs of the budget."""
    shape: Shape
    centre: float
    u: Floats
    y: Floats
    """Response (ln L, or L) at the nominal budget."""
    solver: Floats
    """Shape (4, n): ``solver @ y`` gives the coefficients of 1, u, u^2, u^3. Zeros for Akima."""
    leverage: Floats
    verdict: Verdict

    @property
    def coefficients(self) -> Floats:
        coefficients: Floats = self.solver @ self.y
        return coefficients

    @property
    def residuals(self) -> Floats:
        """Zero for Akima, which passes through every size."""
        if self.shape == "akima":
            return np.zeros_like(self.y)
        return self.y - np.vander(self.u, 4, increasing=True) @ self.coefficients

    @property
    def design(self) -> Floats:
        """Powers of u in a polynomial profile, shape (n, 3 or 4)."""
        return np.vander(self.u, 3 if self.shape == "parabola" else 4, increasing=True)

    @property
    def dof(self) -> int:
        free = {"parabola": 3, "cubic": 4, "akima": len(self.u)}[self.shape]
        return max(0, len(self.u) - free)

    @property
    def ln_range(self) -> float:
        """Ln (largest N / smallest N)."""
        return float(self.u.max() - self.u.min())

    def minima(self, y: Floats) -> tuple[Floats, Floats, Bools]:
        """Ln N at the minimum, response at the minimum, and whether it exists near the grid; y is (draws, n)."""
        position, lowest, exists = (
            _akima_minima(self, y) if self.shape == "akima" else _polynomial_minima(y @ self.solver.T)
        )
        return position + self.centre, lowest, exists & (np.abs(position) < 1.5 * self.ln_range)

    @property
    def ln_params(self) -> float:
        """Ln N at the minimum, or at the size of lowest loss if the minimum is not inside the grid."""
        if self.verdict == "interior":
            return float(self.minima(self.y[None])[0][0])
        return float(self.u[np.argmin(self.y)] + self.centre)

    @property
    def lowest(self) -> float:
        """Response at :attr:`ln_params`."""
        if self.verdict == "interior":
            return float(self.minima(self.y[None])[1][0])
        return float(np.min(self.y))


def _polynomial_minima(coefficients: Floats) -> tuple[Floats, Floats, Bools]:
    """Position u, value and existence of the minima of cubics (or parabolas) with coefficients (draws, 4)."""
    c0, c1, c2, c3 = coefficients.T
    discriminant = c2**2 - 3 * c1 * c3
    denominator = c2 + np.sqrt(np.maximum(discriminant, 0))
    exists = (discriminant > 0) & (denominator > 0)
    # The root of c1 + 2 c2 u + 3 c3 u^2 with positive curvature, in the form that allows c3 = 0.
    u = np.where(exists, -c1 / np.where(exists, denominator, 1), 0.0)
    return u, c0 + u * (c1 + u * (c2 + u * c3)), exists


def _akima_minima(profile: Profile, y: Floats) -> tuple[Floats, Floats, Bools]:
    """Minima of Akima interpolants (Porian et al. 2024, section 3) through the mean of each size."""
    from scipy.interpolate import Akima1DInterpolator  # slow to import

    sizes, means = _average_by_size(profile.u, y)
    grid = np.linspace(sizes[0], sizes[-1], 801)
    curves = Akima1DInterpolator(sizes, means, axis=1)(grid)
    lowest = np.clip(np.argmin(curves, axis=1), 1, len(grid) - 2)
    rows = np.arange(len(curves))
    left, middle, right = (curves[rows, lowest + shift] for shift in (-1, 0, 1))
    curvature = left - 2 * middle + right
    shift = np.where(curvature > 0, (left - right) / (2 * np.where(curvature > 0, curvature, 1)), 0.0)
    return grid[lowest] + np.clip(shift, -1, 1) * (grid[1] - grid[0]), middle, np.ones(len(y), dtype=bool)


def _average_by_size(u: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Distinct sizes, and the mean of y (draws, n) at each."""
    sizes, size = np.unique(np.round(u, 9), return_inverse=True)
    share = (size == np.arange(len(sizes))[:, None]).astype(float)
    return sizes, y @ (share / share.sum(axis=1, keepdims=True)).T


def fit_profile(
    group: Group, ln_params: Floats, response: Floats, shape: Shape = "parabola", is_log: bool = True
) -> Profile:
    """Fit one budget's curve by least squares (Akima interpolates) and locate its minimum.

    ``ln_params`` and ``response`` (ln L, or L if not ``is_log``) cover all runs. A parabola needs 3 sizes, a cubic
    4, Akima 5. Parabolas and cubics go through the runs near the lowest loss.
    """
    rows, far = group.rows, group.rows[:0]
    if shape != "akima":
        is_near = _find_near(ln_params[rows], response[rows], is_log)
        rows, far = rows[is_near], rows[~is_near]
    x, y = ln_params[rows], response[rows]
    sizes, mean_responses = _average_by_size(x, y[None])
    centre = float((sizes[0] + sizes[-1]) / 2)
    u, solver = x - centre, np.zeros((4, len(x)))
    leverage = np.ones(len(x))
    verdict: Verdict = "too few sizes"
    if len(sizes) >= MIN_SIZES[shape]:
        if shape != "akima":
            columns = 3 if shape == "parabola" else 4
            design = np.vander(u, columns, increasing=True)
            solver[:columns] = np.linalg.pinv(design)
            leverage = np.einsum("ij,ji->i", design, solver[:columns])
        verdict = "interior"
    profile = Profile(group.budget, rows, far, shape, centre, u, y, solver, leverage, verdict)
    if verdict == "interior":
        profile = replace(
            profile, verdict=_locate_minimum(profile, int(np.argmin(mean_responses)), sizes - centre)
        )
    return profile


def _find_near(ln_params: Floats, response: Floats, is_log: bool) -> Bools:
    """Runs of sizes with a mean loss near the lowest of the budget, of its neighbours, and of the lowest sizes."""
    sizes, means = _average_by_size(ln_params, response[None])
    excess = means[0] - means[0].min() if is_log else means[0] / means[0].min() - 1
    lowest = int(np.argmin(means[0]))
    is_near = excess <= (np.log1p(MAX_EXCESS) if is_log else MAX_EXCESS)
    is_near[max(lowest - 1, 0) : lowest + 2] = True
    is_near[np.argsort(excess, kind="stable")[:MIN_NEAR_SIZES]] = True
    near: Bools = is_near[np.searchsorted(sizes, np.round(ln_params, 9))]
    return near


def _locate_minimum(profile: Profile, lowest_size: int, sizes: Floats) -> Verdict:
    if lowest_size == 0:
        return "below"
    if lowest_size == len(sizes) - 1:
        return "above"
    position, _, exists = profile.minima(profile.y[None])
    if not exists[0]:
        return "not convex"
    if position[0] - profile.centre < sizes[0]:
        return "below"
    return "above" if position[0] - profile.centre > sizes[-1] else "interior"


def profile_record(profile: Profile, ln_tokens: float, response: Response) -> ProfileMinimum:
    """The profile as a record; ``curve`` holds the inputs of :func:`profile_loss`."""
    lowest = profile.lowest
    curve = {f"c{power}": float(value) for power, value in enumerate(profile.coefficients)}
    if profile.shape == "akima":
        sizes, means = _average_by_size(profile.u, profile.y[None])
        curve = {f"u{knot}": float(value) for knot, value in enumerate(sizes)}
        curve |= {f"y{knot}": float(value) for knot, value in enumerate(means[0])}
    return ProfileMinimum(
        budget=profile.budget,
        params=float(np.exp(profile.ln_params)),
        tokens=float(np.exp(ln_tokens)),
        loss=float(np.exp(lowest)) if response == "log-loss" else lowest,
        at_edge=profile.verdict != "interior",
        n_runs=len(profile.rows),
        curve={
            **curve,
            "centre": profile.centre,
            "log": float(response == "log-loss"),
            "smallest": float(np.exp(profile.centre + profile.u.min())),
            "largest": float(np.exp(profile.centre + profile.u.max())),
        },
    )


def profile_loss(minimum: ProfileMinimum, params: Floats) -> Floats:
    """Loss in nats along the fitted profile at these N, for plots; NaN beyond an interpolated profile."""
    curve = minimum.curve
    u = np.log(params) - curve["centre"]
    if "c0" in curve:
        value = curve["c0"] + u * (curve["c1"] + u * (curve["c2"] + u * curve.get("c3", 0.0)))
    else:
        from scipy.interpolate import Akima1DInterpolator  # slow to import

        knots = range(sum(1 for name in curve if name[0] == "u"))
        x, y = (np.array([curve[f"{name}{knot}"] for knot in knots]) for name in "uy")
        beyond = (u < x[0] - 1e-9) | (u > x[-1] + 1e-9)
        value = np.where(beyond, np.nan, Akima1DInterpolator(x, y)(np.clip(u, x[0], x[-1])))
    return np.exp(value) if curve["log"] else value
