"""The numerical setting of a fit: one BLAS thread, and a FitError instead of a warning or a traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
from pydantic import ValidationError

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.blas_threads import one_blas_thread

P = ParamSpec("P")
R = TypeVar("R")

_NUMERICAL = {
    "finite_number",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "value_error",
}
"""Types of pydantic's errors for a number that a record does not accept. Other types are faults of a program."""


def convert_numerical_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: raise FitError for singular systems and non-finite results; ignore intermediate overflow.

    Records reject infinity and NaN, so a non-finite result cannot be returned. BLAS uses one thread.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with np.errstate(all="ignore"), one_blas_thread():
                return function(*args, **kwargs)
        except (np.linalg.LinAlgError, ValidationError) as error:
            if isinstance(error, ValidationError) and not _is_numerical(error):
                raise
            raise FitError(
                "these runs do not determine the law: its parameters or its optimum are not finite numbers. Look "
                "at the losses (do they fall with N and with D?) and at the units of the columns, and "
                "train over a wider range of N and D"
            ) from error

    return wrapper


def _is_numerical(error: ValidationError) -> bool:
    return any(detail["type"] in _NUMERICAL for detail in error.errors(include_url=False))
