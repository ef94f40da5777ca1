"""Training throughput of a few sizes of a plan on this machine, from a few real training steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import RunSpec, SweepPlan
from flops_fit_core.training.context import WorkerContext
from flops_fit_core.training.loop import TorchTrainer
from flops_fit_core.training.rng import random_state, set_random_state
from flops_fit_core.training.throughput import measure_tokens_per_second

PROBES = 3
PROBE_SECONDS = 0.2


@dataclass(frozen=True)
class ProbeLimits:
    """The largest model and the largest step that are tried."""

    params: int
    step_flops: float


ON_CPU = ProbeLimits(params=20_000_000, step_flops=2e10)
"""A second or two at the few GFLOP/s of one core."""
ON_GPU = ProbeLimits(params=1_000_000_000, step_flops=2e14)
"""The same on a data center GPU. Initializing weights on the CPU takes about 10 s per billion."""


def measure_timings(
    plan: SweepPlan, registry: Registry, missing: Sequence[RunSpec], *, cpu_only: bool = False
) -> dict[str, float]:
    """Training tokens per second of up to three sizes among ``missing``, from real steps on this machine.

    ``cpu_only``: measure nothing on other devices, where it takes longer and would keep memory of the device.
    The states of the CPU's random number generators do not change.

    Returns run id -> tokens per second of the run alone on its device, with one CPU thread. Empty if the trainer
    is not the bundled one, if this machine lacks the device, or if no size is small enough to be tried.
    """
    limits = _limits(plan, missing[0], registry) if missing else None
    if limits is None or (cpu_only and limits is not ON_CPU):
        return {}
    small = sorted(
        {run.params: run for run in missing if _is_small(run, limits)}.values(), key=lambda run: run.params
    )
    if not small:
        return {}
    indices = {round(k * (len(small) - 1) / (PROBES - 1)) for k in range(PROBES)}
    threads, generators = torch.get_num_threads(), random_state("cpu")
    torch.set_num_threads(1)
    try:
        timings: dict[str, float] = {}
        for index in sorted(indices):
            run = small[index]
            context = WorkerContext(plan.jobs({run.id})[0], registry, Path())
            choice = context.chosen("trainer", run)
            trainer = choice.spec.build(choice.options)
            if not isinstance(trainer, TorchTrainer):
                return {}
            try:
                timings[run.id] = measure_tokens_per_second(run, context, trainer.options, PROBE_SECONDS)
            except torch.OutOfMemoryError:
                break  # larger sizes do not fit either
            finally:
                context.release()
        return timings
    finally:
        torch.set_num_threads(threads)
        set_random_state(generators, "cpu")


def _limits(plan: SweepPlan, run: RunSpec, registry: Registry) -> ProbeLimits | None:
    """Limits of the experiment's device. None if this machine has no such device."""
    context = WorkerContext(plan.jobs({run.id})[0], registry, Path())
    try:
        device = torch.device(context.device.torch_device)
    except ConfigError:
        return None  # a plan made on a login node
    return ON_CPU if device.type == "cpu" else ON_GPU


def _is_small(run: RunSpec, limits: ProbeLimits) -> bool:
    return run.params <= limits.params and run.flops / run.steps <= limits.step_flops
