"""Moments of a sweep."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from torture import checker
from torture.zygote import Driver


def until(is_true: Callable[[], Any], seconds: float = 60.0, pause: float = 0.001) -> bool:
    """Wait for a condition. Returns whether it was met in time."""
    end = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def random_moment(driver: Driver, runs: int, draw: random.Random, gap: float) -> None:
    """Wait for a random number of printed results, and then up to ``gap`` seconds; or for the driver's end."""
    results = draw.randrange(runs)
    until(lambda: len(checker.printed(driver.text)) >= results or driver.poll())
    end = time.monotonic() + draw.uniform(0, gap)
    until(lambda: time.monotonic() > end or driver.poll())
