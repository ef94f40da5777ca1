"""Call the loggers of a sweep."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from flops_fit_core.plugins.protocols import Logger

logger = logging.getLogger("flops_fit")


class Loggers:
    """The loggers of a sweep. One that raises an exception is logged, closed and removed; the sweep continues."""

    def __init__(self, loggers: Iterable[Logger]) -> None:
        self._loggers = list(loggers)

    def call(self, method: str, *arguments: Any) -> None:
        """Call ``started``, ``progress``, ``finished`` or ``close`` of every logger."""
        for listener in list(self._loggers):
            try:
                getattr(listener, method)(*arguments)
            except Exception:
                logger.exception("logger %s stops: %s failed", type(listener).__name__, method)
                self._loggers.remove(listener)
                if method != "close":
                    with suppress(Exception):
                        listener.close()
