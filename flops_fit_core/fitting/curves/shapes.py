"""Common schedules by a text: ``cosine:steps=24000,peak=3e-4,warmup=2000,final=0.1``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.curves.rates import MAX_STEPS, LearningRates
from flops_fit_core.fitting.data import Floats

SHAPES = ("constant", "linear", "cosine", "wsd")
SYNTAX = (
    f"NAME:key=value,... with NAME one of {', '.join(SHAPES)}, and keys steps (number of updates), peak (learning "
    "rate), warmup (updates), final (last rate / peak), decay (share of the steps in which wsd falls), power (1 "
    "for a linear fall of wsd, 0.5 for 1-sqrt)"
)
_DEFAULTS = {"peak": 1.0, "warmup": 0.0, "final": 0.0, "decay": 0.2, "power": 1.0}


@dataclass(frozen=True)
class ScheduleShape:
    """A schedule with a linear warmup from 0. Keys without a value come from the run or have a default."""

    name: str
    values: Mapping[str, float]

    def rates(self, run: Mapping[str, float] | None = None) -> LearningRates:
        """The rate of every update.

        Args:
            run: Values of a run, used for keys that the text does not have: ``steps``, ``peak``, ``warmup``.

        Raises FitError without ``steps``.
        """
        values = {**_DEFAULTS, **(run or {}), **self.values}
        if "steps" not in values:
            raise FitError(f"schedule {self.name}: write its number of updates, as {self.name}:steps=24000")
        steps, warmup = int(values["steps"]), values["warmup"]
        if not 1 <= steps <= MAX_STEPS:
            raise FitError(f"schedule {self.name}: steps must be from 1 to {MAX_STEPS:,}")
        if warmup >= steps:
            raise FitError(f"schedule {self.name}: its warmup of {warmup:g} updates needs more than {steps} steps")
        numbers = np.arange(steps, dtype=np.float64)
        rising = np.minimum(1.0, numbers / warmup) if warmup > 0 else np.ones(steps)
        return LearningRates(values["peak"] * rising * self._fall(numbers, warmup, steps, values))

    def _fall(self, numbers: Floats, warmup: float, steps: int, values: Mapping[str, float]) -> Floats:
        """The rate after the warmup, divided by the peak."""
        if self.name == "constant":
            return np.ones(steps)
        start = steps * (1 - values["decay"]) if self.name == "wsd" else warmup
        done = np.clip((numbers - start) / max(steps - start, 1.0), 0.0, 1.0)
        if self.name == "cosine":
            remaining = 0.5 * (1 + np.cos(np.pi * done))
        else:
            remaining = 1 - done ** (values["power"] if self.name == "wsd" else 1.0)
        return values["final"] + (1 - values["final"]) * remaining


def parse_schedule(text: str) -> ScheduleShape:
    """The schedule in a text. Raises FitError, which gives the syntax."""
    name, _, rest = text.strip().partition(":")
    if name not in SHAPES:
        close = difflib.get_close_matches(name, SHAPES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise FitError(f"schedule {text!r}: unknown name {name!r}.{hint} Write {SYNTAX}")
    values: dict[str, float] = {}
    for part in filter(None, (item.strip() for item in rest.split(","))):
        key, equals, number = part.partition("=")
        try:
            values[key.strip()] = float(number.replace("_", ""))
        except ValueError:
            equals = ""
        if not equals or key.strip() not in ("steps", *_DEFAULTS) or not np.isfinite(values[key.strip()]):
            raise FitError(f"schedule {text!r}: {part!r} is not a valid value. Write {SYNTAX}")
    _check(text, values)
    return ScheduleShape(name, values)


def _check(text: str, values: Mapping[str, float]) -> None:
    """Raises FitError for values outside their range."""
    shares = {"final": (0.0, 1.0), "decay": (0.0, 1.0)}
    for key, (low, high) in shares.items():
        if not low <= values.get(key, low) <= high:
            raise FitError(f"schedule {text!r}: {key} must be from {low:g} to {high:g}, as a share")
    for key in ("peak", "power"):
        if not values.get(key, 1.0) > 0:
            raise FitError(f"schedule {text!r}: {key} must be above 0")
    if values.get("warmup", 0.0) < 0:
        raise FitError(f"schedule {text!r}: warmup must not be negative")
