"""Eight learning rates of one small size, trained side by side and one after another.

    OMP_NUM_THREADS=1 python tests/benchmarks/packing.py [--widths 8,16,32,64] [--steps 150] [--rounds 3]

A gpt of three layers on the bundled text, one process, one thread, the two ways in turn. Prints tokens a second of
both (training steps and everything between them), their ratio, and how far the final losses are apart: at the
highest rates rounding grows into other weights, as another seed would give.
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
            "recipe": {"name": "default", "lr": rate},
            "trainer": {"name": "torch", "eval_tokens": 1024},
            "device": {"name": "cpu"},
        }
        yield make_plan(make_experiment(table, registry))


def timed(jobs, registry):
    """Seconds, tokens, and final losses by run."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        results = [
            event
            for job in jobs
            for event in work(job.model_dump_json(), registry.setup.model_dump_json(), folder=Path(folder))
            if isinstance(event, RunResult)
        ]
        seconds = time.perf_counter() - began
    assert all(one.status == "completed" for one in results), [one.error for one in results]
    return seconds, sum(one.tokens for one in results), {one.id: one.loss for one in results}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="8,16,32,64")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    registry = installed()
    for width in [int(one) for one in given.widths.split(",")]:
        both = list(plans(registry, width, given.steps, batch_size=8, context=64))
        alone = [job for plan in both for job in plan.jobs({run.id for run in plan.runs})]
        packed = Job(
            id="vmap_runs", trajectories=tuple(plan.trajectories[0] for plan in both), device=alone[0].device
        )
        ratios, speeds = [], []
        for _ in range(given.rounds):
            one_by_one, tokens, losses = timed(alone, registry)
            together, _, other = timed([packed], registry)
            ratios.append(one_by_one / together)
            speeds.append((tokens / one_by_one, tokens / together))
        apart = sorted(abs(losses[run] - other[run]) for run in losses)
        before, after = (statistics.median(column) for column in zip(*speeds, strict=True))
        print(
            f"width {width:3d}: {before:8,.0f} tokens/s one after another, {after:8,.0f} side by side: "
            f"{statistics.median(ratios):.2f}x; losses differ by {statistics.median(apart):.1e} in the median, "
            f"{apart[-1]:.1e} at most",
            flush=True,
        )


if __name__ == "__main__":
    main()
