"""One surface of ln loss over ln lr and ln batch for all cells, with the power laws as its parameters.

ln L = m_cell + q(z - theta (1, ln N, ln D)), where z is (ln lr, ln batch), and q is a polynomial of degree 2 or 3
without constant and linear terms, so that its minimum is at 0. Each cell has a free level m, so the law of the
loss itself plays no role, and a cell with its optimum outside its grid informs the law by the slope of its losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.bool_]

ITERATIONS = 60
TOLERANCE = 1e-10
"""Relative decrease of the sum of squares at which the iteration ends."""
CONDITION = 1e-9
"""Singular values below this share of the largest count as zero, after scaling the columns."""


class UndeterminedSurface(ValueError):
    """The runs do not determine the surface, or it has no minimum."""


@dataclass(frozen=True)
class GridRuns:
    """Usable runs of a table. All arrays have one row per run."""

    hyper: Array
    """ln lr and ln batch (tokens), those of the two that vary within cells; shape (runs, axes)."""
    scale: Array
    """1, and the regressors of the law: ln N and ln D minus their centers; shape (runs, coefficients)."""
    ln_loss: Array
    cell: NDArray[np.int64]
    """Number of the cell, from 0 without gaps."""

    @property
    def n_cells(self) -> int:
        return int(self.cell.max()) + 1

    def select(self, rows: Rows) -> GridRuns:
        """The runs of some rows, with cells numbered anew."""
        cell = np.unique(self.cell[rows], return_inverse=True)[1]
        return GridRuns(self.hyper[rows], self.scale[rows], self.ln_loss[rows], cell)

    def lowest(self) -> Array:
        """The lowest ln loss of each cell."""
        lowest = np.full(self.n_cells, np.inf)
        np.minimum.at(lowest, self.cell, self.ln_loss)
        return lowest

    def within(self, window: float) -> Rows:
        """Rows with a loss at most ``window`` (relative) above the lowest of their cell."""
        return np.asarray(self.ln_loss <= self.lowest()[self.cell] + np.log1p(window))


@dataclass(frozen=True)
class Surface:
    """A fitted surface."""

    powers: tuple[tuple[int, ...], ...]
    """Exponents of the axes in each term of q; shape (terms, axes)."""
    theta: Array
    """Coefficients of the laws; shape (axes, coefficients)."""
    terms: Array
    """Coefficients of q, as derivatives: a term is coefficient times the product of z^p / p!."""
    residuals: Array
    jacobian: Array
    """Derivatives of the fitted ln losses by (theta, terms), levels projected out; shape (runs, parameters)."""
    degrees_of_freedom: int

    def polynomial(self, runs: GridRuns) -> Array:
        """Q of some runs: their ln loss minus the level of their cell."""
        return _evaluate(self.powers, self.theta, self.terms, runs)[0]

    def optimum(self, scale: Array) -> Array:
        """Ln lr and ln batch at the optimum; ``scale`` has shape (coefficients,)."""
        return self.theta @ scale

    @property
    def curvature(self) -> Array:
        """Second derivatives of ln loss at the optimum; shape (axes, axes)."""
        return _curvature(self.powers, self.terms, self.theta.shape[0])

    @property
    def variance(self) -> float:
        """Variance of ln loss around the surface."""
        return float(self.residuals @ self.residuals) / max(self.degrees_of_freedom, 1)

    def covariance(self) -> Array:
        """Covariance of (theta, terms) for independent noise of single runs."""
        scales = np.linalg.norm(self.jacobian, axis=0)
        inverse = np.linalg.inv((self.jacobian / scales).T @ (self.jacobian / scales))
        return self.variance * inverse / np.outer(scales, scales)


def polynomial_powers(axes: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """Exponents of all terms of degrees 2 to ``degree`` in ``axes`` variables."""
    powers = [term for term in product(range(degree + 1), repeat=axes) if 2 <= sum(term) <= degree]
    return tuple(sorted(powers, key=lambda term: (sum(term), term)))


def count_parameters(runs: GridRuns, degree: int) -> int:
    """Parameters of the surface: a level per cell, the laws, and the terms of q."""
    axes, coefficients = runs.hyper.shape[1], runs.scale.shape[1]
    parameters: int = runs.n_cells + axes * coefficients + len(polynomial_powers(axes, degree))
    return parameters


def fit_surface(runs: GridRuns, degree: int, start: Surface | None = None) -> Surface:
    """The least-squares surface.

    A quadratic surface is linear in its coefficients, so it needs no starting values. It is the start of the
    Levenberg-Marquardt iteration for the cubic terms, unless ``start`` is a fit to nearly the same runs.

    Raises UndeterminedSurface if the runs do not determine it or it has no minimum.
    """
    if len(runs.ln_loss) <= count_parameters(runs, degree):
        raise UndeterminedSurface("too few runs")
    if degree == 2:
        return _fit_quadratic(runs)
    start = _fit_quadratic(runs) if start is None else start
    axes, coefficients = start.theta.shape
    powers = polynomial_powers(axes, degree)
    terms = np.zeros(len(powers))
    terms[: len(start.terms)] = start.terms
    estimate = _minimise(runs, powers, np.concatenate([start.theta.ravel(), terms]), (axes, coefficients))
    return _finish(runs, powers, estimate, (axes, coefficients))


def _fit_quadratic(runs: GridRuns) -> Surface:
    axes, coefficients = runs.hyper.shape[1], runs.scale.shape[1]
    powers = polynomial_powers(axes, 2)
    center = runs.hyper.mean(axis=0)
    z = runs.hyper - center
    linear = (z[:, :, None] * runs.scale[:, None, :]).reshape(len(z), -1)
    design = project_levels(np.concatenate([linear, _monomials(powers, z)], axis=1), runs.cell)
    solution = _solve(design, project_levels(runs.ln_loss, runs.cell))
    terms = solution[axes * coefficients :]
    curvature = _curvature(powers, terms, axes)
    _require_minimum(curvature)
    theta = -np.linalg.solve(curvature, solution[: axes * coefficients].reshape(axes, coefficients))
    theta[:, 0] += center
    return _finish(runs, powers, np.concatenate([theta.ravel(), terms]), (axes, coefficients))


def _solve(design: Array, values: Array) -> Array:
    scales = np.linalg.norm(design, axis=0)
    if not np.all(scales > 0):
        raise UndeterminedSurface("a term does not vary")
    solution, _, rank, _ = np.linalg.lstsq(design / scales, values, rcond=CONDITION)
    if rank < design.shape[1]:
        raise UndeterminedSurface("the terms are not independent")
    return np.asarray(solution / scales)


def _minimise(runs: GridRuns, powers: tuple[tuple[int, ...], ...], start: Array, shape: tuple[int, int]) -> Array:
    """Levenberg-Marquardt with the analytic Jacobian, levels projected out."""
    split = shape[0] * shape[1]

    def residuals(estimate: Array) -> tuple[Array, Array]:
        fitted, jacobian = _evaluate(powers, estimate[:split].reshape(shape), estimate[split:], runs)
        return project_levels(runs.ln_loss - fitted, runs.cell), jacobian

    estimate, damping = start, 1e-6
    residual, jacobian = residuals(estimate)
    for _ in range(ITERATIONS):
        design = project_levels(jacobian, runs.cell)
        normal, gradient = design.T @ design, design.T @ residual
        before = float(residual @ residual)
        while True:
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
            new_residual, new_jacobian = residuals(estimate + step)
            after = float(new_residual @ new_residual)
            if after < before or damping > 1e6:
                break
            damping *= 8
        if not after < before:
            break
        estimate, residual, jacobian = estimate + step, new_residual, new_jacobian
        damping = max(damping / 8, 1e-9)
        if before - after <= TOLERANCE * before:
            break
    return estimate


def _finish(
    runs: GridRuns, powers: tuple[tuple[int, ...], ...], estimate: Array, shape: tuple[int, int]
) -> Surface:
    split = shape[0] * shape[1]
    theta, terms = estimate[:split].reshape(shape), estimate[split:]
    fitted, jacobian = _evaluate(powers, theta, terms, runs)
    surface = Surface(
        powers,
        theta,
        terms,
        project_levels(runs.ln_loss - fitted, runs.cell),
        project_levels(jacobian, runs.cell),
        len(runs.ln_loss) - runs.n_cells - len(estimate),
    )
    _require_minimum(surface.curvature)
    _require_rank(surface.jacobian)
    return surface


def _require_minimum(curvature: Array) -> None:
    if not np.isfinite(curvature).all() or np.linalg.eigvalsh(curvature)[0] <= 0:
        raise UndeterminedSurface("the surface has no minimum")


def _require_rank(design: Array) -> None:
    scales = np.linalg.norm(design, axis=0)
    if not np.all(scales > 0):
        raise UndeterminedSurface("a parameter has no effect")
    values = np.linalg.eigvalsh((design / scales).T @ (design / scales))
    if values[0] < CONDITION * values[-1]:
        raise UndeterminedSurface("the parameters are not independent")


def _curvature(powers: tuple[tuple[int, ...], ...], terms: Array, axes: int) -> Array:
    by_powers = dict(zip(powers, terms, strict=True))
    unit = np.eye(axes, dtype=int)
    return np.array([[by_powers[tuple(map(int, unit[i] + unit[j]))] for j in range(axes)] for i in range(axes)])


def _evaluate(
    powers: tuple[tuple[int, ...], ...], theta: Array, terms: Array, runs: GridRuns
) -> tuple[Array, Array]:
    """Q of every run, and its derivatives by (theta, terms)."""
    z = runs.hyper - runs.scale @ theta.T
    monomials = _monomials(powers, z)
    slopes = []
    for axis in range(z.shape[1]):
        lower = [
            (index, (*term[:axis], term[axis] - 1, *term[axis + 1 :]))
            for index, term in enumerate(powers)
            if term[axis]
        ]
        slopes.append(_monomials(tuple(term for _, term in lower), z) @ terms[[index for index, _ in lower]])
    by_theta = -(np.stack(slopes, axis=1)[:, :, None] * runs.scale[:, None, :]).reshape(len(z), -1)
    return monomials @ terms, np.concatenate([by_theta, monomials], axis=1)


def _monomials(powers: tuple[tuple[int, ...], ...], z: Array) -> Array:
    """The product of z^p / p! over the axes; shape (runs, terms)."""
    scaled = [np.ones_like(z)]
    for power in range(1, max(max(term) for term in powers) + 1):
        scaled.append(scaled[-1] * z / power)
    columns = np.empty((len(z), len(powers)))
    for index, term in enumerate(powers):
        column = scaled[term[0]][:, 0]
        for axis, power in enumerate(term[1:], 1):
            column = column * scaled[power][:, axis]
        columns[:, index] = column
    return columns


def project_levels(values: Array, cell: NDArray[np.int64]) -> Array:
    """Values minus the mean of their cell: the projection that removes a free level per cell."""
    columns = values.reshape(len(values), -1)
    counts = np.bincount(cell)
    means = np.stack([np.bincount(cell, column) for column in columns.T], axis=1) / counts[:, None]
    return (columns - means[cell]).reshape(values.shape)


def without_cell(runs: GridRuns, rows: Rows, cell: int) -> GridRuns:
    """The selected runs of all other cells."""
    return runs.select(rows & (runs.cell != cell))
