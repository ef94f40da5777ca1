"""Optima by budget and tokens of inference. The page interpolates this grid and contains no law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.laws.optimum_solver import OptimumSolver
from flops_fit_core.records import Interval, LawFit, Optimum

BELOW, ABOVE = 10.0, 1000.0
"""The grid reaches from about the smallest fitted C divided by BELOW to the largest multiplied by ABOVE."""
BUDGETS_PER_DECADE = 4
SERVING_RATIOS = (0.0, *(float(ratio) for ratio in np.geomspace(1e-2, 316.0, 14)))
"""Tokens of inference, relative to the D_opt of the same budget without inference."""

Table = list[list[float | None]]


@dataclass(frozen=True)
class PredictionGrid:
    """Optima at ``flops`` x ``serving_ratios``."""

    flops: list[float]
    """Budgets in FLOPs, for training and inference together, equally spaced in the logarithm."""
    serving_ratios: list[float]
    """Tokens of inference over D_opt of the budget without inference; only 0 if the law allows no inference."""
    tables: dict[str, Table]
    """``params``, ``params_low``, ``params_high``, the same for ``tokens`` and ``loss``: a row per ratio, with an
    entry per budget. Entries are None without an interval."""


def prediction_grid(
    fit: LawFit, optimum: Callable[[float], Optimum], solver: OptimumSolver | None
) -> PredictionGrid:
    """The grid of a fit. Without inference, optima are those of ``optimum``; with inference, those of the core.

    ``solver`` is that of :func:`find_solver`.
    """
    low, high = fit.flops_range
    # The largest fitted C and 10 times as much are points of the grid, so the page shows these answers exactly.
    first, last = np.round(np.log10([low / BELOW / high, ABOVE]) * BUDGETS_PER_DECADE)
    steps = np.arange(first, last + 1)
    flops = [float(budget) for budget in high * 10 ** (steps / BUDGETS_PER_DECADE)]
    rows = [solve_many(solver, optimum, flops)]
    ratios = [0.0]
    core = solver or OptimumSolver(fit)
    for ratio in SERVING_RATIOS[1:]:
        serving = [ratio * prediction.tokens.value for prediction in rows[0]]
        try:
            rows.append(core.many(flops, serving, new_run=False))
        except FitError:  # a law of the optimum only, or the law of another plugin
            break
        ratios.append(ratio)
    tables: dict[str, Table] = {}
    for name in ("params", "tokens", "loss"):
        for suffix, end in (("", "value"), ("_low", "low"), ("_high", "high")):
            tables[name + suffix] = [[_end(getattr(item, name), end) for item in row] for row in rows]
    return PredictionGrid(flops, ratios, tables)


def _end(interval: Interval, end: str) -> float | None:
    value: float | None = getattr(interval, end)
    return value


def solve_many(
    solver: OptimumSolver | None, optimum: Callable[[float], Optimum], flops: list[float]
) -> list[Optimum]:
    """Optima at many budgets without those of a new run, by ``solver``, or by ``optimum`` without one."""
    return [optimum(budget) for budget in flops] if solver is None else solver.many(flops, new_run=False)


def find_solver(fit: LawFit, optimum: Callable[[float], Optimum]) -> OptimumSolver | None:
    """The core's solver if it agrees with ``optimum`` at both ends of the runs, else None: another plugin."""
    solver = OptimumSolver(fit)
    try:
        solved = solver.many(list(fit.flops_range), new_run=False)
    except FitError:
        return None
    for solution, flops in zip(solved, fit.flops_range, strict=True):
        expected = optimum(flops)
        for name in ("params", "tokens", "loss"):
            if not np.isclose(getattr(solution, name).value, getattr(expected, name).value, rtol=1e-5):
                return None
    return solver
