"""Learning-rate schedules: ``constant`` and ``cosine``, both after a linear warmup."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, NonNegativeInt

from flops_fit_core import Options, RunView, Schedule, ScheduleSpec, hookimpl


class ConstantOptions(Options):
    """A linear warmup, then the peak."""

    warmup_tokens: NonNegativeInt = 0
    """Tokens (samples) over which the learning rate rises from 0; unset, the recipe decides."""


class CosineOptions(ConstantOptions):
    """A linear warmup, then half a cosine down to the end of the run's own D."""

    final: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate at the end over the peak (0.1 in Hoffmann et al. 2022)."""


def warmup(options: ConstantOptions, run: RunView, step: int) -> float:
    """Reaches 1 at the first step after ``warmup_tokens``."""
    steps = options.warmup_tokens / run.tokens_per_step
    return min(1.0, (step + 1) / (steps + 1))


def build_constant(options: ConstantOptions, run: RunView) -> Schedule:
    """1 after the warmup."""
    return lambda step: warmup(options, run, step)


def build_cosine(options: CosineOptions, run: RunView) -> Schedule:
    """From 1 after the warmup to ``final`` at the run's last step."""
    start = options.warmup_tokens / run.tokens_per_step

    def multiplier(step: int) -> float:
        if step < start:
            return warmup(options, run, step)
        done = (step - start) / max(1.0, run.steps - 1 - start)
        return options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return multiplier


@hookimpl
def flops_fit_schedules() -> Iterable[ScheduleSpec]:
    """Offer ``constant`` and ``cosine``."""
    yield ScheduleSpec(name="constant", options=ConstantOptions, build=build_constant)
    yield ScheduleSpec(name="cosine", options=CosineOptions, build=build_cosine)
