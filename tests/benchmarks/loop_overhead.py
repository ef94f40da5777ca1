"""The training loop beside a bare hand-written one: same model, batches, optimizer, clipping and steps.

    python tests/benchmarks/loop_overhead.py [--widths 16 64 128] [--rounds 9] [--seconds 1.0]

gpt, 3 layers, context 64, on the default text; AdamW (fused), clip 1.0, cosine after a warmup; one thread.
The two take turns within one process, and each round compares neighbours. Wall time, and this process's CPU
time, which other work on the machine disturbs less. Our side has everything that a run has after its model
is built: checks of the loss, progress, a checkpoint, an evaluation (of 1 window) and the result. The bare
side's batches come from the same dataset object. Ends with the largest difference between the two models'
final weights, which trained on the same batches.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from by_hand import multiplier, parameter_groups
from torch.nn.functional import cross_entropy

from flops_fit_core import RunResult, plan
from flops_fit_core.plugins.registry import installed
from flops_fit_core.training import WorkerContext

DEPTH, CONTEXT, BATCH = 3, 64, 16


class Prebuilt(WorkerContext):
    """Gives parts that were built before, so that building is not timed."""

    def prepare(self, run):
        self.parts = super().build(run)

    def build(self, run, *, shard=None):
        return self.parts


def job_of(width, steps):
    per_token = 3 * (DEPTH * (24 * width**2 + 4 * CONTEXT * width) + 2 * width * 256)
    experiment = {
        "sweep": {
            "budgets": [per_token * steps * BATCH * CONTEXT],
            "sizes": [{"width": width}],
            "batch_size": BATCH,
        }
        | {"min_steps": 1},
        "model": {"name": "gpt", "depth": DEPTH},
        "dataset": {"name": "text", "context": CONTEXT},
        "optimizer": "adamw",
        "counter": "model",
        "trainer": {"name": "torch", "eval_tokens": CONTEXT},
        "device": "cpu",
    }
    sweep = plan(experiment).plan
    (job,) = sweep.jobs({run.id for run in sweep.runs})
    assert job.runs[0].steps == steps
    return job


def timed(function):
    cpu, wall = time.process_time(), time.perf_counter()
    value = function()
    return time.perf_counter() - wall, time.process_time() - cpu, value


def ours(context):
    (run,) = context.job.runs
    context.prepare(run)
    trainer = context.chosen("trainer", run)
    trainer = trainer.spec.build(trainer.options)
    with TemporaryDirectory() as folder:  # a new one: a checkpoint of an earlier round would be resumed
        context.checkpoints = Path(folder) / "checkpoints"
        wall, cpu, events = timed(lambda: list(trainer.train(context.job, context)))
    assert isinstance(events[-1], RunResult) and events[-1].status == "completed"
    return wall, cpu, context.parts.model


def bare(context):
    (run,) = context.job.runs
    dataset = context.dataset(run)
    torch.manual_seed(run.seed)
    chosen = context.chosen("model", run)
    model = chosen.spec.build(chosen.options, dataset.task)
    groups = parameter_groups(model)
    peaks = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    parameters = list(model.parameters())

    def loop():
        model.train()
        batches = dataset.batches(BATCH)
        for step in range(run.steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * multiplier(run, step)
            batch = next(batches)
            loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    wall, cpu, _ = timed(loop)
    return wall, cpu, model


def compare(width, rounds, seconds, registry):
    trial = Prebuilt(job_of(width, 20), registry, Path())
    ours(trial), bare(trial)  # imports and caches
    steps = max(20, round(seconds / (bare(trial)[0] / 20)))
    context = Prebuilt(job_of(width, steps), registry, Path())
    times = {ours: [], bare: []}
    for number in range(rounds):
        for side in (ours, bare) if number % 2 else (bare, ours):
            wall, cpu, model = side(context)
            times[side].append((wall, cpu))
            if side is ours:
                mine = [p.detach().clone() for p in model.parameters()]
            else:
                theirs = [p.detach().clone() for p in model.parameters()]
    ratios = [median(a[kind] / b[kind] for a, b in zip(times[ours], times[bare], strict=True)) for kind in (0, 1)]
    milliseconds = [1000 * median(one[0] for one in times[side]) / steps for side in (bare, ours)]
    apart = max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True))
    print(
        f"{width:5d}  {steps:5d}  {milliseconds[0]:12.2f}  {milliseconds[1]:12.2f}  {ratios[0]:10.3f}"
        f"  {ratios[1]:9.3f}  {apart:13.1e}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one side in one round")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print("medians of paired rounds")
    print("width  steps  bare ms/step  ours ms/step  wall ratio  CPU ratio  weights apart")
    for width in given.widths:
        compare(width, given.rounds, given.seconds, installed())


if __name__ == "__main__":
    main()
