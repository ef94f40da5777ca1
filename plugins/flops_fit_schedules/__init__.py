"""Learning-rate schedules: ``constant``, ``cosine`` and ``wsd``, all after a linear warmup."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from flops_fit_core.plugins import Options, RunInfo, Schedule, ScheduleSpec, hookimpl


class ConstantOptions(Options):
    """A linear warmup, then the peak."""

    warmup_tokens: NonNegativeInt = 0
    """Tokens (samples) over which the learning rate rises from 0. Unset: the recipe decides."""


class CosineOptions(ConstantOptions):
    """A linear warmup, then half a cosine from the peak to the end of the run."""

    final: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate at the end, divided by the peak (0.1 in Hoffmann et al. 2022)."""


class WSDOptions(ConstantOptions):
    """Warmup, stable, decay: the peak until the last part of D, then a decay. Runs that differ only in D share
    all steps before their decay."""

    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of D in which the learning rate falls. With 0.2, the loss equals that of a cosine (Hägele et al.
    2024)."""
    shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """Shape of the decay. ``1-sqrt`` was better than ``linear`` in Hägele et al. 2024, section 3."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at the end, divided by the peak."""


def warmup(options: ConstantOptions, run: RunInfo, step: int) -> float:
    """Multiplier during the warmup. Reaches 1 at the first step after ``warmup_tokens``."""
    steps = options.warmup_tokens / run.tokens_per_step
    return min(1.0, (step + 1) / (steps + 1))


def build_constant(options: ConstantOptions, run: RunInfo) -> Schedule:
    """1 after the warmup."""
    return lambda step: warmup(options, run, step)


def all_steps(options: ConstantOptions, run: RunInfo) -> int:
    """A longer run shares all steps of this run."""
    return run.steps


def build_cosine(options: CosineOptions, run: RunInfo) -> Schedule:
    """From 1 after the warmup to ``final`` at the run's last step."""
    start = options.warmup_tokens / run.tokens_per_step

    def multiplier(step: int) -> float:
        if step < start:
            return warmup(options, run, step)
        done = (step - start) / max(1.0, run.steps - 1 - start)
        return options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return multiplier


def stable_steps(options: WSDOptions, run: RunInfo) -> int:
    """Steps before the decay. The decay has at least one step."""
    return max(1, run.steps - max(1, round(options.decay * run.steps)))


def build_wsd(options: WSDOptions, run: RunInfo) -> Schedule:
    """1 after the warmup; ``1 - x`` or ``1 - sqrt(x)`` over the decay, where x goes from 0 to 1."""
    start = stable_steps(options, run)

    def multiplier(step: int) -> float:
        rising = warmup(options, run, step)
        if step < start:
            return rising
        done = (step - start) / (run.steps - start)
        falling = 1 - (math.sqrt(done) if options.shape == "1-sqrt" else done)
        return rising * (options.final + (1 - options.final) * falling)

    return multiplier


@hookimpl
def flops_fit_schedules() -> Iterable[ScheduleSpec]:
    """Offer ``constant``, ``cosine`` and ``wsd``."""
    yield ScheduleSpec(name="constant", options=ConstantOptions, build=build_constant, branch=all_steps)
    yield ScheduleSpec(name="cosine", options=CosineOptions, build=build_cosine)
    yield ScheduleSpec(name="wsd", options=WSDOptions, build=build_wsd, branch=stable_steps)
