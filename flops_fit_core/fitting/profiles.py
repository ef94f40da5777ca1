"""IsoFLOP profiles: runs grouped by budget, a parabola in ln N through each, and its minimum.

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2). The parabola is fitted to ln L unless
``response="loss"`` asks for L: seed noise is about a constant share of the loss, so ln L has one noise
level for all budgets and residuals can be pooled; the minima of both agree to within 0.05% of N on
Chinchilla's surface even on grids that reach x16 to each side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from flops_fit_core.fitting.data import Floats, Ints, Runs
from flops_fit_core.records import ProfileMinimum

Response = Literal["log-loss", "loss"]
Verdict = Literal["interior", "below", "above", "not convex", "too few sizes"]

GROUP_WIDTH = 1.2
"""Runs without a nominal budget are one group while their C lies within this factor."""


@dataclass(frozen=True)
class Group:
    """The runs of one budget."""

    budget: float
    rows: Ints


def group_by_budget(runs: Runs) -> list[Group]:
    """Groups in order of budget: by nominal budget where given, otherwise by clusters of C.

    A cluster spans at most a factor of 1.2 in C, and its budget is the geometric mean.
    """
    groups = [Group(float(c), np.flatnonzero(runs.budget == c)) for c in np.unique(runs.budget) if np.isfinite(c)]
    loose = np.flatnonzero(~np.isfinite(runs.budget))
    loose = loose[np.argsort(runs.flops[loose], kind="stable")]
    while len(loose):
        near = int(np.searchsorted(runs.flops[loose], runs.flops[loose[0]] * GROUP_WIDTH, side="right"))
        rows, loose = np.sort(loose[:near]), loose[near:]
        groups.append(Group(float(np.exp(np.log(runs.flops[rows]).mean())), rows))
    return sorted(groups, key=lambda group: group.budget)


def move_to_budgets(runs: Runs, groups: list[Group]) -> Floats:
    """Ln L of every run, moved from its own C to its nominal one at its own N.

    The slope d ln L / d ln C at fixed N comes from a quadratic surface in (ln N, ln C) through all runs. A
    run that misses its budget by 1% is off by about ten times less than that in loss, but all runs of one
    size are off together, which would move the minimum.
    """
    ln_loss, nominal = np.log(runs.loss), np.empty(len(runs))
    for group in groups:
        nominal[group.rows] = np.log(group.budget)
    miss = np.log(runs.flops) - nominal
    if float(np.max(np.abs(miss))) < 1e-12 or len(groups) < 2:
        return ln_loss
    x, z = np.log(runs.params), np.log(runs.flops)
    x, z = x - x.mean(), z - z.mean()
    columns = [np.ones_like(x), x, x**2, z, x * z] + ([z**2] if len(groups) > 2 else [])
    if len(runs) <= len(columns):
        columns = [np.ones_like(x), x, x**2, z]
    fitted = np.linalg.lstsq(np.stack(columns, axis=1), ln_loss, rcond=None)[0]
    cross, bend = fitted[4] if len(columns) > 4 else 0.0, fitted[5] if len(columns) > 5 else 0.0
    # Half of the way back: the slope in the middle between the run and its budget.
    slope = fitted[3] + cross * x + 2 * bend * (z - miss / 2)
    moved: Floats = ln_loss - slope * miss
    return moved


@dataclass(frozen=True)
class Profile:
    """One budget's parabola: response = c0 + c1 u + c2 u^2 with u = ln N - centre."""

    budget: float
    rows: Ints
    centre: float
    u: Floats
    y: Floats
    """Response (ln L, or L) at the nominal budget."""
    solver: Floats
    """Shape (3, n): coefficients are ``solver @ y``, for one y or for many."""
    leverage: Floats
    coefficients: Floats
    verdict: Verdict

    @property
    def fitted(self) -> Floats:
        c0, c1, c2 = self.coefficients
        out: Floats = c0 + c1 * self.u + c2 * self.u**2
        return out

    @property
    def residuals(self) -> Floats:
        return self.y - self.fitted

    @property
    def dof(self) -> int:
        return max(0, len(self.u) - 3)

    @property
    def ln_params(self) -> float:
        """Ln N at the minimum; at the lowest size where the minimum is not inside the grid."""
        if self.verdict == "interior":
            return float(vertex(self.coefficients) + self.centre)
        return float(self.u[np.argmin(self.y)] + self.centre)

    @property
    def lowest(self) -> float:
        """Response at :attr:`ln_params`."""
        if self.verdict == "interior":
            return float(depth(self.coefficients))
        return float(np.min(self.y))


def vertex(coefficients: Floats) -> Floats:
    """Where parabolas with coefficients (..., 3) turn, relative to their centre."""
    out: Floats = -coefficients[..., 1] / (2 * coefficients[..., 2])
    return out


def depth(coefficients: Floats) -> Floats:
    """Value of parabolas with coefficients (..., 3) where they turn."""
    out: Floats = coefficients[..., 0] - coefficients[..., 1] ** 2 / (4 * coefficients[..., 2])
    return out


def fit_profile(group: Group, ln_params: Floats, response: Floats) -> Profile:
    """Fit one budget's parabola by least squares and say where its minimum lies.

    ``ln_params`` and ``response`` are of all runs. Fewer than three sizes have no parabola.
    """
    x, y = ln_params[group.rows], response[group.rows]
    sizes, size = np.unique(np.round(x, 9), return_inverse=True)
    centre = float((sizes[0] + sizes[-1]) / 2)
    u = x - centre
    if len(sizes) < 3:
        nothing = np.zeros(3)
        return Profile(
            group.budget,
            group.rows,
            centre,
            u,
            y,
            np.zeros((3, len(u))),
            np.ones(len(u)),
            nothing,
            "too few sizes",
        )
    design = np.stack([np.ones_like(u), u, u**2], axis=1)
    solver: Floats = np.linalg.pinv(design).astype(np.float64)
    coefficients = solver @ y
    means = np.bincount(size, y) / np.bincount(size)
    verdict = _verdict(coefficients, int(np.argmin(means)), sizes - centre)
    leverage = np.einsum("ij,ji->i", design, solver)
    return Profile(group.budget, group.rows, centre, u, y, solver, leverage, coefficients, verdict)


def _verdict(coefficients: Floats, lowest: int, sizes: Floats) -> Verdict:
    if lowest == 0:
        return "below"
    if lowest == len(sizes) - 1:
        return "above"
    if coefficients[2] <= 0:
        return "not convex"
    turn = float(vertex(coefficients))
    if turn < sizes[0]:
        return "below"
    return "above" if turn > sizes[-1] else "interior"


def profile_record(profile: Profile, ln_tokens: float, response: Response) -> ProfileMinimum:
    """The profile as a record; ``curve`` holds what :func:`profile_loss` needs."""
    c0, c1, c2 = (float(one) for one in profile.coefficients)
    at_edge = profile.verdict != "interior"
    lowest = profile.lowest
    return ProfileMinimum(
        budget=profile.budget,
        params=float(np.exp(profile.ln_params)),
        tokens=float(np.exp(ln_tokens)),
        loss=float(np.exp(lowest)) if response == "log-loss" else lowest,
        at_edge=at_edge,
        n_runs=len(profile.rows),
        curve={
            "centre": profile.centre,
            "c0": c0,
            "c1": c1,
            "c2": c2,
            "log": float(response == "log-loss"),
            "smallest": float(np.exp(profile.centre + profile.u.min())),
            "largest": float(np.exp(profile.centre + profile.u.max())),
        },
    )


def profile_loss(minimum: ProfileMinimum, params: Floats) -> Floats:
    """Loss in nats along the fitted profile at these N, for drawing it."""
    curve = minimum.curve
    u = np.log(params) - curve["centre"]
    value: Floats = curve["c0"] + curve["c1"] * u + curve["c2"] * u**2
    return np.exp(value) if curve["log"] else value
