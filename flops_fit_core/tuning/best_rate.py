"""The best learning rate of one size: the vertex of a parabola in log2 of the rate, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Side = Literal["low", "high"]

POINTS = 5
"""Number of lowest losses in the parabola: farther from the minimum, a loss curve is not a parabola."""
DRAWS = 2000
LEVEL = 0.9
"""Level of all intervals."""


@dataclass(frozen=True)
class BestRate:
    """The best learning rate of one size."""

    x: float
    """log2 of the rate."""
    error: float | None
    """Standard error of ``x`` from the parabola's residuals; None for three points or fewer."""
    freedom: int
    """Degrees of freedom behind ``error``."""
    draws: Array | None
    """Bootstrap draws of ``x`` over seeds; None with fewer than three seeds."""
    edge: Side | None
    """Set if the lowest loss is at the first or last rate tried: the minimum lies outside."""


def lowest_five(x: Array, y: Array) -> tuple[Array, Array]:
    """The points of the five lowest losses."""
    keep = np.sort(np.argsort(y, kind="stable")[:POINTS])
    return x[keep], y[keep]


def vertex(x: Array, y: Array) -> float:
    """The minimum of the least-squares parabola through the lowest five points, clipped to their range.

    Returns the lowest point if the parabola has no minimum or there are fewer than three points.

    Args:
        x: log2 of the rates.
        y: Their losses, finite.
    """
    x, y = lowest_five(x, y)
    lowest = float(x[np.argmin(y)])
    if len(x) < 3:
        return lowest
    center = x.mean()
    curvature, slope, _ = np.polyfit(x - center, y, 2)
    if curvature <= 0:
        return lowest
    return float(np.clip(center - slope / (2 * curvature), x.min(), x.max()))


def vertex_error(x: Array, y: Array) -> float | None:
    """Standard error of :func:`vertex` by the delta method, from the residuals of the five points.

    Returns None for three points, which a parabola fits exactly, and if the parabola has no minimum.
    """
    x, y = lowest_five(x, y)
    if len(x) <= 3:
        return None
    design = np.vander(x - x.mean(), 3)
    (a, b, _), *_ = np.linalg.lstsq(design, y, rcond=None)
    if a <= 0:
        return None
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    variance = float(residuals @ residuals) / (len(x) - 3)
    gradient = np.array([b / (2 * a * a), -1 / (2 * a), 0.0])
    return float(np.sqrt(variance * gradient @ np.linalg.inv(design.T @ design) @ gradient))


def bootstrap_vertices(x: Array, losses: Array, *, draws: int = DRAWS, seed: int = 0) -> Array:
    """Vertices of the mean over seeds drawn with replacement; shape (draws,).

    All rates of a seed are drawn together, because they share initial weights and data.

    Args:
        x: log2 of the rates.
        losses: Shape (rates, seeds), finite.
    """
    generator = np.random.default_rng(seed)
    draws_of_seeds = generator.integers(losses.shape[1], size=(draws, losses.shape[1]))
    return np.array([vertex(x, losses[:, seeds].mean(axis=1)) for seeds in draws_of_seeds])


def best_rate(x: Array, losses: Array) -> BestRate | None:
    """The best rate of one size; None if fewer than three rates have a loss.

    Args:
        x: log2 of the rates, ascending.
        losses: Shape (rates, seeds); NaN for a run that diverged. A rate at which any seed diverged has no loss.
    """
    complete = np.isfinite(losses).all(axis=1)
    if complete.sum() < 3:
        return None
    rates, losses = x[complete], losses[complete]
    means = losses.mean(axis=1)
    lowest = rates[np.argmin(means)]
    return BestRate(
        x=vertex(rates, means),
        error=vertex_error(rates, means),
        freedom=min(POINTS, len(rates)) - 3,
        draws=bootstrap_vertices(rates, losses) if losses.shape[1] >= 3 else None,
        edge="low" if lowest == x[0] else "high" if lowest == x[-1] else None,
    )


def mean_interval(rates: list[BestRate]) -> tuple[float, float | None, float | None]:
    """The mean of the sizes' best rates and its interval at :data:`LEVEL`, in log2.

    The interval is over seeds from three seeds on; otherwise from the parabolas' residuals, with Student's t.
    """
    from scipy.stats import t

    middle = float(np.mean([rate.x for rate in rates]))
    draws = [rate.draws for rate in rates if rate.draws is not None]
    if len(draws) == len(rates):
        low, high = np.quantile(np.mean(draws, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return middle, float(low), float(high)
    errors = [rate.error for rate in rates if rate.error is not None]
    if len(errors) < len(rates):
        return middle, None, None
    error = float(np.sqrt(np.square(errors).sum())) / len(rates)
    half_width = float(t.ppf((1 + LEVEL) / 2, sum(rate.freedom for rate in rates))) * error
    return middle, middle - half_width, middle + half_width
