"""Roots of many increasing functions at the same time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats

_STEPS = 40
_EPSILON = np.finfo(float).eps


def find_roots(
    function: Callable[[Floats], Floats], left: Floats, right: Floats, tolerance: float
) -> tuple[Floats, Bools]:
    """Roots by the Illinois method, for each element of the arrays.

    Args:
        function: Maps an array to the values there, of the same shape. May return NaN.
        left: Points with a negative value.
        right: Points with a positive value.
        tolerance: A root is the first point with a smaller absolute value, or with no further change by rounding.

    Returns:
        The roots, and which of them are within the tolerance. An element whose ends have values of other signs
        is not, and its root is meaningless.

    The method is that of Dowell and Jarratt, BIT 11 (1971) 168.
    """
    at_left, at_right = function(left), function(right)
    with np.errstate(invalid="ignore"):
        is_inside = (at_left < 0) & (at_right > 0)
    middle, was_right = (left + right) / 2, np.full_like(at_left, np.nan)
    is_solved, previous = np.zeros_like(is_inside), np.full_like(at_left, np.nan)
    for _ in range(_STEPS):
        low, high = np.where(is_inside, at_left, 0.0), np.where(is_inside, at_right, 1.0)
        next_point = np.where(is_inside, right - high * (right - left) / (high - low), middle)
        middle = np.where(is_solved, middle, next_point)
        stands = np.abs(middle - previous) <= 4 * _EPSILON * np.abs(middle)
        previous = middle
        at_middle = function(middle)
        is_right = at_middle > 0
        # An end that stays for a second step counts half, so that both ends move.
        stays = np.where(was_right == is_right, 0.5, 1.0)
        at_left = np.where(is_right, stays * at_left, at_middle)
        at_right = np.where(is_right, at_middle, stays * at_right)
        was_right = is_right.astype(float)
        left, right = np.where(is_right, left, middle), np.where(is_right, middle, right)
        is_solved = is_inside & (is_solved | stands | (np.abs(at_middle) < tolerance))
        if bool(np.all(is_solved | ~is_inside)):
            break
    return middle, is_solved
