"""Choose the window of losses by leaving out one cell at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flops_fit_core.fitting.hyperparameters.surface import (
    CONDITION,
    Array,
    GridRuns,
    Rows,
    Surface,
    UndeterminedSurface,
    count_parameters,
    fit_surface,
    project_levels,
    without_cell,
)

WINDOWS = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08)
"""Candidate windows: relative loss above the lowest run of the cell."""
SCORED_SHARE, MIN_SCORED = 0.25, 8
"""The score uses this share of each cell's runs, those with the lowest losses, and at least this many."""
LEVELS_FOR_CUBIC = 4
"""A cubic needs this many different values on each axis in the median cell."""


@dataclass(frozen=True)
class WindowChoice:
    """A window, its fit, and the fits without one cell each."""

    window: float
    degree: int
    rows: Rows
    surface: Surface
    refits: tuple[Surface, ...]
    """Fits without one cell each, in the order of the cells; empty if any of them is not determined."""
    score: float
    """Mean squared error of the held-out losses."""
    is_score_of_cells: bool
    """Whether cells were held out; otherwise single runs."""


def choose_window(
    runs: GridRuns, windows: Sequence[float] = WINDOWS, degrees: Sequence[int] | None = None
) -> WindowChoice | None:
    """The window with the lowest error in held-out cells; None if no window determines a surface.

    For each window, the surface is fitted without one cell at a time. It predicts the differences between the
    losses of that cell's best runs (the same runs for all windows). A window that is too small has noisy
    coefficients, and one that is too large has a surface that is not a low polynomial. Cubic terms are used if
    the grid determines them. With too few cells, single runs are left out instead.
    """
    scored = scored_rows(runs)
    for degree in allowed_degrees(runs) if degrees is None else degrees:
        candidates = [
            candidate for window in windows if (candidate := _try_window(runs, window, degree, scored)) is not None
        ]
        by_cells = [candidate for candidate in candidates if candidate.is_score_of_cells]
        for candidate in sorted(by_cells or candidates, key=lambda candidate: candidate.score):
            refits = _refit(runs, candidate)
            if refits or not by_cells:
                return replace(candidate, refits=refits)
        if candidates:
            return min(candidates, key=lambda candidate: candidate.score)
    return None


def allowed_degrees(runs: GridRuns) -> tuple[int, ...]:
    """Degrees to try, best first."""
    counts = [
        [len(np.unique(np.round(runs.hyper[runs.cell == cell, axis], 6))) for cell in range(runs.n_cells)]
        for axis in range(runs.hyper.shape[1])
    ]
    return (3, 2) if min(np.median(values) for values in counts) >= LEVELS_FOR_CUBIC else (2,)


def scored_rows(runs: GridRuns) -> Rows:
    """The runs of each cell with the lowest losses, in which the law should be good."""
    rows = np.zeros(len(runs.ln_loss), dtype=bool)
    for cell in range(runs.n_cells):
        members = np.flatnonzero(runs.cell == cell)
        count = max(MIN_SCORED, round(SCORED_SHARE * len(members)))
        rows[members[np.argsort(runs.ln_loss[members], kind="stable")[:count]]] = True
    return rows


def _try_window(runs: GridRuns, window: float, degree: int, scored: Rows) -> WindowChoice | None:
    rows = runs.within(window)
    inside = runs.select(rows)
    if len(inside.ln_loss) < count_parameters(inside, degree) + max(3, inside.n_cells // 2):
        return None
    try:
        surface = fit_surface(inside, degree)
    except (UndeterminedSurface, np.linalg.LinAlgError):
        return None
    steps = _leave_out_steps(inside, surface)
    if steps is None:
        return WindowChoice(window, degree, rows, surface, (), _score_runs(runs, rows, surface, scored), False)
    errors = [_score_cell(runs, scored & (runs.cell == cell), step) for cell, step in enumerate(steps)]
    return WindowChoice(window, degree, rows, surface, (), float(np.mean(errors)), True)


def _leave_out_steps(inside: GridRuns, surface: Surface) -> list[Surface] | None:
    """The surface without one cell at a time, by one Gauss-Newton step from the fit to all cells.

    These serve to compare windows; the fits of the chosen window are complete. None if a cell cannot be left out.
    """
    if inside.n_cells < 2:
        return None
    scales = np.linalg.norm(surface.jacobian, axis=0)
    design = surface.jacobian / scales
    normal = design.T @ design
    estimate = np.concatenate([surface.theta.ravel(), surface.terms])
    steps = []
    for cell in range(inside.n_cells):
        rows = inside.cell == cell
        others = normal - design[rows].T @ design[rows]
        values = np.linalg.eigvalsh(others)
        if values[0] < CONDITION * values[-1]:
            return None
        changed = estimate - np.linalg.solve(others, design[rows].T @ surface.residuals[rows]) / scales
        theta, terms = changed[: surface.theta.size], changed[surface.theta.size :]
        steps.append(replace(surface, theta=theta.reshape(surface.theta.shape), terms=terms))
    return steps


def _refit(runs: GridRuns, choice: WindowChoice) -> tuple[Surface, ...]:
    """Fits without one cell each; empty if any of them is not determined."""
    if not choice.is_score_of_cells:
        return ()
    try:
        return tuple(
            fit_surface(without_cell(runs, choice.rows, cell), choice.degree, choice.surface)
            for cell in range(runs.n_cells)
        )
    except (UndeterminedSurface, np.linalg.LinAlgError, ValueError):
        return ()


def _score_cell(runs: GridRuns, rows: Rows, surface: Surface) -> float:
    cell = runs.select(rows)
    errors = project_levels(cell.ln_loss - surface.polynomial(cell), cell.cell)
    return float(errors @ errors) / max(len(errors) - 1, 1)


def _score_runs(runs: GridRuns, rows: Rows, surface: Surface, scored: Rows) -> float:
    """Mean squared error of left-out runs, by the leverage of the linearised fit."""
    left_out = project_errors(runs, rows, surface)
    inverse = np.linalg.pinv(surface.jacobian.T @ surface.jacobian)
    leverage = np.einsum("ij,jk,ik->i", surface.jacobian, inverse, surface.jacobian)
    counts = np.bincount(runs.cell[rows], minlength=runs.n_cells)[runs.cell[rows]]
    left_out[rows] /= np.maximum(1 - leverage - 1 / counts, 0.05)
    return float(np.mean(np.square(left_out[scored])))


def project_errors(runs: GridRuns, rows: Rows, surface: Surface) -> Array:
    """Errors of all runs, with the level of each cell from the runs of ``rows``."""
    errors = runs.ln_loss - surface.polynomial(runs)
    counts = np.bincount(runs.cell[rows], minlength=runs.n_cells)
    levels = np.bincount(runs.cell[rows], errors[rows], minlength=runs.n_cells) / counts
    return np.asarray(errors - levels[runs.cell])
