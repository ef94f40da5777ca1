"""One BLAS thread during a fit.

Fits solve many small linear systems. Several threads make each slower, above all where other processes use
the cores, and the last digits then depend on the number of cores. The threads of torch are not limited: its BLAS
is inside its library. OpenBLAS may ignore a limit that is set outside the main thread.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_limits: list[Any] = []
"""Limits of the calls in progress. The first sets the limit, the last restores the threads of before."""


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit numpy's and scipy's BLAS to one thread. May be nested, and entered by several threads."""
    with _lock:
        limit = None if _limits else _find_libraries().limit(limits=1, user_api="blas")
        _limits.append(limit or _limits[0])
    try:
        yield
    finally:
        with _lock:
            last = _limits.pop()
            if not _limits:
                last.restore_original_limits()


@functools.cache
def _find_libraries() -> ThreadpoolController:
    """The libraries that are loaded. scipy's solvers are imported first, as they have a separate BLAS."""
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()
