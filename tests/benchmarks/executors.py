"""Run one sweep on every executor: compare runs, losses and wall times, and measure the overhead per job.

    python tests/benchmarks/executors.py [--executors local processes ray slurm] [--budget 4e9]

24 runs of the example's models (six sizes, four seeds) on the bundled text, each of a few seconds on one core. Ray
is started on this machine for the sweep. Slurm is a cluster on this machine that starts before the sweep and stops
afterwards (tests/slurm_cluster.py lists its requirements; the start-up is not timed). ``local`` trains one run at
a time, the other executors two. The overhead is the wall time times the number of parallel runs, minus the time of
the runs, per job.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from flops_fit_core import plan

sys.path.insert(0, str(Path(__file__).parents[1]))
PARALLEL_RUNS = {"local": 1, "processes": 2, "ray": 2, "slurm": 2}


def table(executor, budget):
    return {
        "name": executor,
        "sweep": {
            "budgets": [budget],
            "sizes": [{"width": width} for width in (8, 12, 16, 20, 24, 32)],
            "seeds": [0, 1, 2, 3],
            "min_steps": 1,
        },
        "model": {"name": "gpt", "depth": 3, "head_dim": 4},
        "dataset": "text",
        "optimizer": "adamw",
        "counter": "model",
        "trainer": {"name": "torch", "eval_tokens": 16_384},
        "device": "cpu",
        "executor": executor,
    }


@contextlib.contextmanager
def cluster_for(executor):
    """Start and stop the cluster that the executor needs."""
    if executor != "slurm":
        yield
        return
    import os

    import slurm_cluster

    if reason := slurm_cluster.missing_requirement():
        raise SystemExit(f"slurm: {reason}")
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as base,
        slurm_cluster.cluster(Path(base)) as cluster,
    ):
        before = dict(os.environ)
        os.environ.update(cluster.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executors", nargs="+", default=list(PARALLEL_RUNS), choices=list(PARALLEL_RUNS))
    parser.add_argument("--budget", type=float, default=4e9)
    arguments = parser.parse_args()
    reference = {}  # losses and wall time of the first executor
    print("executor    runs  wall s  local/this  overhead s per job  same ids  same losses")
    for executor in arguments.executors:
        with cluster_for(executor), tempfile.TemporaryDirectory(prefix="sweep-", dir="/tmp") as folder:
            study = plan(table(executor, arguments.budget), out=Path(folder) / "study")
            started = time.perf_counter()
            results = study.train()
            wall = time.perf_counter() - started
        assert all(result.status == "completed" for result in results), [result.error for result in results]
        losses = {result.id: result.loss for result in results}
        first_losses = reference.setdefault("losses", losses)
        reference.setdefault("wall", wall)
        training = sum(result.seconds for result in results)
        overhead = (wall * PARALLEL_RUNS[executor] - training) / len(results)
        equal = sum(losses[run] == first_losses.get(run) for run in losses)
        print(
            f"{executor:<10} {len(results):>5} {wall:>7.1f} {reference['wall'] / wall:>11.2f} {overhead:>19.2f}"
            f"  {losses.keys() == first_losses.keys()!s:>8}  {equal} of {len(losses)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
