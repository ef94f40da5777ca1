"""An estimate of the wall time of a plan on this machine, from a few real training steps of a few sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import RunResult, RunSpec, SweepPlan
from flops_fit_core.training.context import WorkerContext
from flops_fit_core.training.loop import TorchTrainer
from flops_fit_core.training.throughput import measure_tokens_per_second

PROBES = 3
PROBE_SECONDS = 0.2


@dataclass(frozen=True)
class ProbeLimits:
    """The largest model and the largest step that an estimate tries."""

    params: int
    step_flops: float


ON_CPU = ProbeLimits(params=20_000_000, step_flops=2e10)
"""A second or two at the few GFLOP/s of one core."""
ON_GPU = ProbeLimits(params=1_000_000_000, step_flops=2e14)
"""The same on a data center GPU. Initializing weights on the CPU takes about 10 s per billion."""


def estimate_seconds(
    plan: SweepPlan, registry: Registry, workers: int, done: Sequence[RunResult] = ()
) -> float | None:
    """Wall time of the runs of ``plan`` that are not in ``done``, on ``workers`` devices.

    Throughput of one device in FLOP/s as a function of N comes from finished runs if there are any, and otherwise
    from timing real training steps of up to three sizes. Between sizes it is interpolated in log N; outside of
    them it is constant. A run on n devices takes n of ``workers`` and is assumed to be n times as fast as on one.
    Returns None if the trainer is not the bundled one, or if no size is small enough to be tried.
    """
    finished = {result.id for result in done if result.is_finished}
    missing = [run for run in plan.runs if run.id not in finished]
    if not missing:
        return 0.0
    speeds = _speeds_of_results(done) or _speeds_of_probes(plan, missing, registry)
    if not speeds:
        return None
    jobs = plan.jobs({run.id for run in missing})
    seconds = [job.flops / (job.devices * _at(job.runs[0].params, speeds)) for job in jobs]
    # workers // n jobs of n devices run at a time. The total is at least the mean per worker and the longest job.
    shares = (duration / max(1, workers // job.devices) for job, duration in zip(jobs, seconds, strict=True))
    return max(math.fsum(shares), max(seconds))


def _speeds_of_results(done: Sequence[RunResult]) -> dict[int, float]:
    """FLOP/s of one device, by N."""
    return {
        result.run.params: result.flops_spent / (result.seconds * result.run.devices)
        for result in done
        if result.seconds > 0 and result.loss and result.flops_spent > 0
    }


def _speeds_of_probes(plan: SweepPlan, runs: list[RunSpec], registry: Registry) -> dict[int, float]:
    """FLOP/s of one device, by N."""
    limits = _limits(plan, runs[0], registry)
    if limits is None:
        return {}
    small = sorted(
        {run.params: run for run in runs if _is_small(run, limits)}.values(), key=lambda run: run.params
    )
    if not small:
        return {}
    indices = {round(k * (len(small) - 1) / (PROBES - 1)) for k in range(PROBES)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speeds: dict[int, float] = {}
        for index in sorted(indices):
            run = small[index]
            job = plan.jobs({run.id})[0]
            context = WorkerContext(job, registry, Path())
            choice = context.chosen("trainer", run)
            trainer = choice.spec.build(choice.options)
            if not isinstance(trainer, TorchTrainer):
                return {}
            try:
                tokens_per_second = measure_tokens_per_second(run, context, trainer.options, PROBE_SECONDS)
                speeds[run.params] = run.flops_per_token * tokens_per_second
            except torch.OutOfMemoryError:
                break  # larger sizes do not fit either
            finally:
                context.release()
        return speeds
    finally:
        torch.set_num_threads(threads)


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


def _at(params: int, speeds: dict[int, float]) -> float:
    sizes = sorted(speeds)
    if params <= sizes[0] or params >= sizes[-1]:
        return speeds[sizes[0] if params <= sizes[0] else sizes[-1]]
    above = next(size for size in sizes if size >= params)
    below = max(size for size in sizes if size <= params)
    if above == below:
        return speeds[above]
    share = math.log(params / below) / math.log(above / below)
    return float(speeds[below] ** (1 - share) * speeds[above] ** share)
