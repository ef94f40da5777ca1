"""Train eight learning rates of one small size packed and in sequence.

    OMP_NUM_THREADS=1 python tests/benchmarks/vmap_runs.py [--widths 8,16,32,64] [--steps 150] [--rounds 3]

A gpt with three layers on the bundled text, one process, one thread; packed and sequential training alternate.
Prints the tokens per second of both (training steps and everything between them), their ratio, and the difference
of the final losses. At the highest rates, rounding grows until the weights differ as much as with another seed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from flops_fit_core import Job, RunResult
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed
from flops_fit_core.training import work

RATES = [0.001 * 2**k for k in range(8)]


def plans(registry, width, steps, batch_size, context):
    for rate in RATES:
        table = {
            "sweep": {
                "budgets": [6.0 * (3 * 12 * width**2 + 256 * width) * steps * batch_size * context],
                "sizes": [{"width": width}],
                "batch_size": batch_size,
                "min_steps": 1,
            },
            "model": {"name": "gpt", "depth": 3, "head_dim": 8},
            "dataset": {"name": "text", "context": context},
            "optimizer": {"name": "adamw"},
            "recipe": {"name": "width-scaled", "lr": rate},
            "trainer": {"name": "torch", "eval_tokens": 1024},
            "device": {"name": "cpu"},
        }
        yield make_plan(make_experiment(table, registry))


def timed(jobs, registry):
    """Seconds, tokens, and final losses by run."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        results = [
            event
            for job in jobs
            for event in work(job.model_dump_json(), registry.setup.model_dump_json(), folder=Path(folder))
            if isinstance(event, RunResult)
        ]
        seconds = time.perf_counter() - started
    assert all(result.status == "completed" for result in results), [result.error for result in results]
    return seconds, sum(result.tokens for result in results), {result.id: result.loss for result in results}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="8,16,32,64")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    registry = installed()
    for width in [int(number) for number in arguments.widths.split(",")]:
        sweep_plans = list(plans(registry, width, arguments.steps, batch_size=8, context=64))
        separate_jobs = [job for plan in sweep_plans for job in plan.jobs({run.id for run in plan.runs})]
        trajectories = tuple(plan.trajectories[0] for plan in sweep_plans)
        packed_job = Job(id="vmap_runs", trajectories=trajectories, device=separate_jobs[0].device)
        ratios, speeds = [], []
        for _ in range(arguments.rounds):
            sequential_seconds, tokens, losses = timed(separate_jobs, registry)
            packed_seconds, _, packed_losses = timed([packed_job], registry)
            ratios.append(sequential_seconds / packed_seconds)
            speeds.append((tokens / sequential_seconds, tokens / packed_seconds))
        differences = sorted(abs(losses[run] - packed_losses[run]) for run in losses)
        sequential_speed, packed_speed = (statistics.median(column) for column in zip(*speeds, strict=True))
        print(
            f"width {width:3d}: {sequential_speed:8,.0f} tokens/s in sequence, {packed_speed:8,.0f} packed: "
            f"{statistics.median(ratios):.2f}x; losses differ by {statistics.median(differences):.1e} in the "
            f"median, {differences[-1]:.1e} at most",
            flush=True,
        )


if __name__ == "__main__":
    main()
