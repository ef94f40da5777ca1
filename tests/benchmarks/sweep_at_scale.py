"""Measure the driver, the store and the page with ten thousand runs on a thousand simulated GPUs.

    python tests/benchmarks/sweep_at_scale.py [--runs 10000] [--gpus 1000] [--stores sqlite json] [--page]

The plan, sweep loop, claims, store and page are real. Only the machines are simulated: a job takes FLOPs / (4e14
FLOP/s) of simulated time, and its losses come from the formula of ``surface``. Each store is measured in a
separate process. Prints the time of planning, the driver's throughput (results stored per second, which limits how
short runs may be), peak memory, the time a second driver needs to find no missing run, and with --page the times
of a fit and of the page.
"""

from __future__ import annotations

import argparse
import heapq
import math
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

from flops_fit_core import RunResult, plan
from flops_fit_core.plugins import Executor, JobEnded
from flops_fit_core.study.jobs import missing_jobs
from flops_fit_core.study.sweep import Sweep

SPEED = 4e14
"""FLOP/s of a simulated GPU."""
BUDGETS, SIZES = 20, 10


class SimulatedCluster(Executor):
    """An executor in simulated time."""

    def __init__(self, gpus, dataset):
        self.capacity, self.now, self.busy = gpus, 0.0, 0.0
        self._dataset, self._running = dataset, []

    def submit(self, job):
        seconds = job.flops / SPEED
        self.busy += seconds
        heapq.heappush(self._running, (self.now + seconds, job.id, job))

    def events(self, timeout):
        while self._running:
            self.now, _, job = heapq.heappop(self._running)
            for run in job.runs:
                yield RunResult(
                    run=run,
                    status="completed",
                    loss=self._dataset.synthetic_loss(run.params, run.tokens, run.seed),
                    tokens=run.tokens,
                    trained_tokens=run.tokens,
                    flops=run.flops,
                    seconds=run.flops / SPEED,
                    synthetic=True,
                )
            yield JobEnded(job.id)

    def cancel(self, job_id):
        pass

    def close(self):
        self._running.clear()


def measure(store, runs, gpus, page):
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        study = make_study(store, runs, Path(folder) / "study")
        planning = time.perf_counter() - started
        dataset = study.experiment.dataset
        cluster = SimulatedCluster(gpus, dataset.spec.build(dataset.options, 0))
        study.folder.save(study.experiment, study.plan, study.registry.setup)
        started = time.perf_counter()
        with study.store() as open_store:
            Sweep(study.plan, open_store, cluster, study.registry, folder=study.folder.path).run()
        sweeping = time.perf_counter() - started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = time.perf_counter()
        with study.store() as open_store:
            missing = missing_jobs(study.plan, open_store)
        scan = time.perf_counter() - started
        assert not missing
        size = size_of(study.folder.path) / 2**20
        print(
            f"{store:<7} {len(study.plan.runs):>6} {planning:>9.1f} {sweeping:>8.1f} "
            f"{len(study.plan.runs) / sweeping:>7.0f} {memory:>7.0f} {scan:>7.2f} {size:>8.1f}",
            flush=True,
        )
        if page:
            started = time.perf_counter()
            study.refresh()
            fit = study.fit
            fit_ended = time.perf_counter()
            files = study.report()
            print(
                f"fit of {fit.n_runs if hasattr(fit, 'n_runs') else len(study.observations)} runs "
                f"{fit_ended - started:.1f} s; page and tables {time.perf_counter() - fit_ended:.1f} s, "
                f"page {files[0].stat().st_size / 2**20:.1f} MB"
            )
        utilization = cluster.busy / (cluster.capacity * cluster.now)
        print(f"        {gpus} GPUs at {SPEED:.0e} FLOP/s: {cluster.now / 86400:.2f} days, {utilization:.1%} busy")


def size_of(study):
    """Bytes of the results."""
    return sum(file.stat().st_size for file in study.glob("results*"))


def make_study(store, runs, folder):
    table = {
        "name": "scale",
        "sweep": {
            "budgets": [10 ** (18 + 2 * k / (BUDGETS - 1)) for k in range(BUDGETS)],
            "sizes": SIZES,
            "size_ratio": 1.25,
            "seeds": list(range(math.ceil(runs / (BUDGETS * SIZES)))),
        },
        "model": "surface",
        "dataset": "surface",
        "store": store,
    }
    return plan(table, out=folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=1_000)
    parser.add_argument("--stores", nargs="+", default=["sqlite", "json"])
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    print("store     runs  plan  s  sweep s  runs/s  memory  scan s  size MB")
    for store in arguments.stores:
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(store, arguments.runs, arguments.gpus, arguments.page)
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
