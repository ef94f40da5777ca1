"""What extreme tables do to arithmetic ends in a message, not in a warning or a traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
from pydantic import ValidationError

from flops_fit_core.errors import FitError

P = ParamSpec("P")
R = TypeVar("R")


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Overflow on the way is let pass; a result that is not finite, or a singular system, is a FitError.

    Records take no infinity and no NaN, so none gets out.
    """

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with np.errstate(all="ignore"):
                return function(*args, **kwargs)
        except (np.linalg.LinAlgError, ValidationError) as error:
            raise FitError(
                "these runs do not determine the law: its parameters or its optimum are not finite numbers. Look "
                "at the losses (do they fall with N and with D?) and at the units of the columns, and "
                "train over a wider range of N and D"
            ) from error

    return inner
