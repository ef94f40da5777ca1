"""One sweep by every executor: the same runs and losses, the wall times side by side, what a job costs.

    python tests/benchmarks/executors.py [--executors local processes ray slurm] [--budget 4e9]

24 runs of the example's models (six sizes, four seeds) on the bundled text, each a few seconds of one core. Ray is
started for the sweep on this machine; Slurm is a cluster of this machine that is brought up first and taken down
afterwards (tests/slurm_cluster.py says what it needs; start-up not timed). ``local`` trains one run after another,
24 runs of the example's models (six sizes, four seeds) on the bundled text, each of a few seconds. Ray is
less the time that the runs themselves took, a job.
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
PLACES = {"local": 1, "processes": 2, "ray": 2, "slurm": 2}


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
def surroundings(executor):
    """What the executor needs to be there."""
    if executor != "slurm":
        yield
        return
    import os

    import slurm_cluster

    if why := slurm_cluster.why_not():
        raise SystemExit(f"slurm: {why}")
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as base, slurm_cluster.cluster(Path(base)) as up:
        before = dict(os.environ)
        os.environ.update(up.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executors", nargs="+", default=list(PLACES), choices=list(PLACES))
    parser.add_argument("--budget", type=float, default=4e9)
    given = parser.parse_args()
    told = {}
    print("executor    runs  wall s  local/this  overhead s a job  same ids  same losses")
    for executor in given.executors:
        with surroundings(executor), tempfile.TemporaryDirectory(prefix="sweep-", dir="/tmp") as folder:
            study = plan(table(executor, given.budget), out=Path(folder) / "study")
            started = time.perf_counter()
            results = study.train()
            wall = time.perf_counter() - started
        assert all(result.status == "completed" for result in results), [result.error for result in results]
        losses = {result.id: result.loss for result in results}
        first = told.setdefault("losses", losses)
        told.setdefault("wall", wall)
        spent = sum(result.seconds for result in results)
        overhead = (wall * PLACES[executor] - spent) / len(results)
        same = sum(losses[run] == first.get(run) for run in losses)
        print(
            f"{executor:<10} {len(results):>5} {wall:>7.1f} {told['wall'] / wall:>11.2f} {overhead:>17.2f}"
            f"  {losses.keys() == first.keys()!s:>8}  {same} of {len(losses)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
