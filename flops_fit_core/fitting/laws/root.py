"""Roots of many increasing functions at the same time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats

_STEPS = 40


def find_roots(
    function: Callable[[Floats], Floats], left: Floats, right: Floats, tolerance: float
) -> tuple[Floats, Bools]:
    """Roots by the Illinois method, for each element of the arrays.

    Args:
        function: Maps an array to the values there, of the same shape. May return NaN.
        left: Points with a negative value.
        right: Points with a positive value.
        tolerance: A root is the first point with a smaller absolute value.

    Returns:
        The roots, and which of them are within the tolerance. An element whose ends have values of other signs
        is not, and its root is meaningless.

    The method is that of Dowell and Jarratt, BIT 11 (1971) 168.
    """
    at_left, at_right = function(left), function(right)
    with np.errstate(invalid="ignore"):
        is_inside = (at_left < 0) & (at_right > 0)
    middle, was_right = (left + right) / 2, np.full_like(at_left, np.nan)
    is_solved = np.zeros_like(is_inside)
    for _ in range(_STEPS):
        width = np.where(is_inside, at_right - at_left, 1.0)
        next_point = np.where(is_inside, right - at_right * (right - left) / width, middle)
        middle = np.where(is_solved, middle, next_point)
        at_middle = function(middle)
        is_right = at_middle > 0
        # An end that stays for a second step counts half, so that both ends move.
        stays = np.where(was_right == is_right, 0.5, 1.0)
        at_left = np.where(is_right, stays * at_left, at_middle)
        at_right = np.where(is_right, at_middle, stays * at_right)
        was_right = is_right.astype(float)
        left, right = np.where(is_right, left, middle), np.where(is_right, middle, right)
        is_solved = is_inside & (np.abs(at_middle) < tolerance)
        if bool(np.all(is_solved | ~is_inside)):
            break
    return middle, is_solved
