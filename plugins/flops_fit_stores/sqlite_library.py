"""sqlite_utils, imported without pandas and numpy, which it imports if installed: half the time of ``status``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Let imports of a package fail, unless it is imported already."""
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]


with _without("pandas"), _without("numpy"):
    from sqlite_utils import Database

__all__ = ["Database"]
