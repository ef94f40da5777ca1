"""Fit the power laws of learning rate and batch to a grid of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.hyperparameters.choice import WINDOWS, WindowChoice, allowed_degrees, choose_window
from flops_fit_core.fitting.hyperparameters.diagnostics import diagnose
from flops_fit_core.fitting.hyperparameters.intervals import law_interval
from flops_fit_core.fitting.hyperparameters.records import GridCell, HyperparameterLaw, LrBatchFit, Side
from flops_fit_core.fitting.hyperparameters.regret import regret
from flops_fit_core.fitting.hyperparameters.surface import Array, GridRuns, Surface
from flops_fit_core.fitting.hyperparameters.table import LrBatchTable
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.records import Interval

LEVEL = 0.9
COLLINEAR = math.log(1.1)
"""N and D change together if D deviates less than this (root mean square of ln D) from a power law in N."""
NAMES = ("lr", "batch")


@dataclass(frozen=True)
class Scales:
    """The regressors of the laws."""

    center: tuple[float, float]
    """Means of ln N and ln D over the cells."""
    used: tuple[int, ...]
    """0 for ln N, 1 for ln D."""
    together: bool
    """Whether N and D change together, so that only N is used."""

    def row(self, ln_params: float, ln_tokens: float) -> Array:
        """1 and the used regressors, centered."""
        differences = (ln_params - self.center[0], ln_tokens - self.center[1])
        return np.array([1.0, *(differences[index] for index in self.used)])


@convert_numerical_errors
def fit_lr_batch(
    table: LrBatchTable,
    *,
    window: float | None = None,
    degree: int | None = None,
    level: float = LEVEL,
    n: str = "matmul",
) -> LrBatchFit:
    """Power laws for the best learning rate and batch in N and D.

    One least-squares surface of ln loss for all cells (:mod:`~flops_fit_core.fitting.hyperparameters.surface`), in
    the runs near the lowest loss of their cell. Cells with an optimum at or beyond an edge of their grid take part
    like all others. Intervals: jackknife over cells.

    Args:
        table: The runs.
        window: Use runs at most this much (relative) above the lowest loss of their cell. None: chosen by leaving
            out one cell at a time.
        degree: 2 or 3. None: 3 if the grid has four learning rates and batches per cell, otherwise 2.
        level: Level of the intervals.
        n: Convention of N in the recipe: ``matmul``, ``total`` or ``non-embedding``.

    Raises FitError if the table has no grid, or its losses have no minimum in it.
    """
    axes = varied_axes(table)
    runs, scales = _grid_runs(table, axes)
    choice = choose_window(
        runs, WINDOWS if window is None else (window,), allowed_degrees(runs) if degree is None else (degree,)
    )
    if choice is None:
        raise FitError(_describe_no_minimum(runs, axes, window))
    method, freedom, laws = _laws(choice, axes, scales, level)
    cells = _cells(table, runs, choice, axes, scales)
    fit = LrBatchFit(
        lr=laws.get("lr"),
        batch=laws.get("batch"),
        fixed_batch=_fixed_batch(table),
        center=(math.exp(scales.center[0]), math.exp(scales.center[1])),
        curvature=tuple(map(tuple, choice.surface.curvature.tolist())),
        window=choice.window,
        degree=choice.degree,
        residual=math.sqrt(choice.surface.variance),
        degrees_of_freedom=freedom,
        interval_method=method,
        level=level,
        n_runs=int(choice.rows.sum()),
        n_table=len(table.loss),
        cells=(),
        n=n,
        excluded=table.excluded,
    )
    fit = fit.model_copy(update={"cells": tuple(_with_law(cell, fit) for cell in cells)})
    notes = diagnose(fit, table, axes, together=scales.together)
    return fit.model_copy(update={"diagnostics": (*table.diagnostics, *notes)})


def varied_axes(table: LrBatchTable) -> tuple[int, ...]:
    """0 for the learning rate and 1 for the batch, if they vary within cells.

    Raises FitError if neither varies, or both change together.
    """
    columns = [table.lr, table.batch]
    within = []
    for values in columns:
        if values is None:
            within.append(np.zeros(len(table.loss)))
            continue
        logs = np.log(values)
        means = np.bincount(table.cell, logs) / np.bincount(table.cell)
        within.append(logs - means[table.cell])
    axes = tuple(axis for axis in (0, 1) if np.ptp(within[axis]) > 1e-6)
    if not axes:
        raise FitError(
            "the table has no grid: no pair of N and D has runs with different learning rates or batches. Train "
            "at least three values of a hyperparameter at each N and D"
        )
    if len(axes) == 2:
        norms = [np.linalg.norm(values) for values in within]
        spread = np.linalg.svd(np.stack(within, axis=1) / norms, compute_uv=False)
        if spread[1] < 1e-3 * spread[0]:
            raise FitError(
                "learning rate and batch change together in every pair of N and D, so their effects cannot be "
                "separated: train other combinations, or keep the runs of one batch with --filter"
            )
    return axes


def _grid_runs(table: LrBatchTable, axes: Sequence[int]) -> tuple[GridRuns, Scales]:
    cell = np.unique(table.cell, return_inverse=True)[1]
    counts = np.bincount(cell)
    ln_params = (np.bincount(cell, np.log(table.params)) / counts)[cell]
    ln_tokens = (np.bincount(cell, np.log(table.tokens)) / counts)[cell]
    first = np.unique(cell, return_index=True)[1]
    by_cell = np.stack([ln_params[first], ln_tokens[first]], axis=1)
    center = by_cell.mean(axis=0)
    varied = [index for index in (0, 1) if np.ptp(by_cell[:, index]) > math.log(1.05)]
    together = False
    if len(varied) == 2:
        slope, constant = np.polyfit(by_cell[:, 0] - center[0], by_cell[:, 1], 1)
        residuals = by_cell[:, 1] - constant - slope * (by_cell[:, 0] - center[0])
        together = bool(np.sqrt(np.mean(np.square(residuals))) < COLLINEAR)
        varied = [0] if together else varied
    scales = Scales((float(center[0]), float(center[1])), tuple(varied), together)
    hyper = np.stack([np.log(values) for values in (table.lr, table.batch) if values is not None], axis=1)
    present = [axis for axis, values in enumerate((table.lr, table.batch)) if values is not None]
    hyper = hyper[:, [present.index(axis) for axis in axes]]
    rows = np.stack([scales.row(*pair) for pair in zip(ln_params, ln_tokens, strict=True)])
    return GridRuns(hyper, rows, np.log(table.loss), cell), scales


def _laws(
    choice: WindowChoice, axes: Sequence[int], scales: Scales, level: float
) -> tuple[str, int, dict[str, HyperparameterLaw]]:
    """The interval method, its degrees of freedom, and the law of each axis."""
    coefficients = choice.surface.theta.shape[1]
    freedom = len(choice.refits) - coefficients
    by_cells = freedom >= 1
    if not by_cells:
        freedom = choice.surface.degrees_of_freedom
    covariance = None if by_cells else choice.surface.covariance()
    laws = {}
    for place, axis in enumerate(axes):
        refits = [_expand(refit.theta[place], scales) for refit in choice.refits] if by_cells else []
        rows = slice(place * coefficients, (place + 1) * coefficients)
        expanded = [] if covariance is None else _expand_covariance(covariance[rows, rows], scales)
        laws[NAMES[axis]] = _law(
            _expand(choice.surface.theta[place], scales), refits, expanded, scales, freedom, level
        )
    return "jackknife" if by_cells else "residuals", freedom, laws


def _law(
    values: tuple[float, float, float],
    refits: Sequence[tuple[float, float, float]],
    covariance: Sequence[Sequence[float]],
    scales: Scales,
    freedom: int,
    level: float,
) -> HyperparameterLaw:
    center, params, tokens = (
        law_interval(value, weights, refits, covariance, freedom, level)
        for value, weights in zip(values, np.eye(3).tolist(), strict=True)
    )
    ends = [None if end is None else math.exp(end) for end in (center.low, center.high)]
    return HyperparameterLaw(
        scale=math.exp(values[0] - values[1] * scales.center[0] - values[2] * scales.center[1]),
        params=params if 0 in scales.used else Interval(value=0.0),
        tokens=tokens if 1 in scales.used else Interval(value=0.0),
        center=Interval(value=math.exp(center.value), low=ends[0], high=ends[1]),
        refits=tuple(refits),
        covariance=tuple(map(tuple, covariance)),
    )


def _expand(theta: Array, scales: Scales) -> tuple[float, float, float]:
    """(value at the center, exponent of N, exponent of D), with 0 for regressors that are not used."""
    values = [float(theta[0]), 0.0, 0.0]
    for place, index in enumerate(scales.used):
        values[1 + index] = float(theta[1 + place])
    return values[0], values[1], values[2]


def _expand_covariance(covariance: Array, scales: Scales) -> list[list[float]]:
    places = [0, *(1 + index for index in scales.used)]
    expanded = np.zeros((3, 3))
    expanded[np.ix_(places, places)] = covariance
    return [[float(value) for value in row] for row in expanded]


def _fixed_batch(table: LrBatchTable) -> float | None:
    if table.batch is None or np.ptp(np.log(table.batch)) > 1e-6:
        return None
    return float(table.batch[0])


def _cells(
    table: LrBatchTable, runs: GridRuns, choice: WindowChoice, axes: Sequence[int], scales: Scales
) -> list[GridCell]:
    """Cells with their best runs and held-out regret, in the order of N and D."""
    cells = []
    for cell in range(runs.n_cells):
        members = np.flatnonzero(runs.cell == cell)
        best = members[np.argmin(runs.ln_loss[members])]
        refit = choice.refits[cell] if choice.refits else None
        held_out = None if refit is None else refit.optimum(runs.scale[best])
        by_name = {} if held_out is None else {NAMES[axis]: math.exp(held_out[i]) for i, axis in enumerate(axes)}
        cells.append(
            GridCell(
                params=float(table.params[best]),
                tokens=math.exp(float(np.mean(np.log(table.tokens[members])))),
                n_runs=int(choice.rows[members].sum()),
                loss=float(table.loss[best]),
                best_lr=None if table.lr is None else float(table.lr[best]),
                best_batch=None if table.batch is None else float(table.batch[best]),
                lr=None,
                batch=None,
                regret=None if held_out is None else regret(runs.hyper[members], runs.ln_loss[members], held_out),
                held_out_lr=by_name.get("lr"),
                held_out_batch=by_name.get("batch"),
                **_edges(runs, members, choice.surface, axes),
            )
        )
    return sorted(cells, key=lambda item: (round(math.log(item.params), 6), item.tokens))


def _edges(
    runs: GridRuns, members: NDArray[np.intp], surface: Surface, axes: Sequence[int]
) -> dict[str, Side | None]:
    """Whether the law's optimum of a cell lies beyond the values tried."""
    optimum = surface.optimum(runs.scale[members[0]])
    edges: dict[str, Side | None] = {}
    for place, axis in enumerate(axes):
        tried = runs.hyper[members, place]
        side: Side | None = "below" if optimum[place] < tried.min() - 1e-9 else None
        edges[f"{NAMES[axis]}_edge"] = "above" if optimum[place] > tried.max() + 1e-9 else side
    return edges


def _with_law(cell: GridCell, fit: LrBatchFit) -> GridCell:
    return cell.model_copy(
        update={
            "lr": fit.predict_lr(cell.params, cell.tokens),
            "batch": fit.predict_batch(cell.params, cell.tokens),
        }
    )


def _describe_no_minimum(runs: GridRuns, axes: Sequence[int], window: float | None) -> str:
    names = " and ".join({0: "learning rate", 1: "batch"}[axis] for axis in axes)
    within = f" within {window:.3g} of the lowest loss" if window is not None else ""
    return (
        f"the losses determine no minimum in {names}: {len(runs.ln_loss)} runs in {runs.n_cells} pairs of N and "
        f"D{within}. Each pair needs at least three values of each hyperparameter, and in most pairs the losses "
        "must rise on both sides of the best value. Add values beyond the best run of each pair"
    )
