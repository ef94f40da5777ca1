"""Many runs in one driver, and many results in one store: is memory flat, and how long do the commands take?

    python tests/benchmarks/endurance.py [--runs 10000] [--stored 100000] [--store sqlite] [--folder /dev/shm]

First, one driver trains ``--runs`` runs of the family ``surface``, with losses from a formula. At every tenth of
them, the memory, open files and threads of the process are printed. Then ``--stored`` results are added to the
store of another study, and commands are timed on it, each in a new process.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

from flops_fit_core import RunResult, plan
from flops_fit_core.config import build_dataset
from flops_fit_core.plugins import Logger

BUDGETS, SIZES = 20, 10
COMMANDS = (["status"], ["runs", "--csv"], ["fit"], ["predict", "--flops", "1e24"], ["report"])


MAIN = "from flops_fit_core.cli import main; main()"


def table(runs, store):
    return {
        "name": "endurance",
        "sweep": {
            "budgets": [10 ** (17 + 4 * index / BUDGETS) for index in range(BUDGETS)],
            "sizes": SIZES,
            "seeds": list(range(runs // (BUDGETS * SIZES))),
        },
        "model": "surface",
        "dataset": {"name": "surface", "noise": 0.005},
        "executor": "local",
        "store": store,
    }


class Sampler(Logger):
    """Prints the state of this process at every tenth of the runs."""

    def __init__(self, runs):
        self._every, self._count = max(1, runs // 10), 0
        self._started = time.perf_counter()
        self.rows = []

    def finished(self, result):
        self._count += 1
        if self._count % self._every == 0:
            now = time.perf_counter()
            files = len(list(Path("/proc/self/fd").iterdir()))
            self.rows.append((self._count, memory(), files, threading.active_count()))
            count, mib, files, threads = self.rows[-1]
            rate = self._every / (now - self._started)
            self._started = now
            print(f"{count:8,} runs  {mib:7.1f} MiB  {files:3} files  {threads:2} threads  {rate:6.0f} runs/s")


def memory():
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def drive(runs, store, folder):
    study = plan(table(runs, store), out=folder)
    sampler = Sampler(len(study.plan.runs))
    study.train(loggers=[sampler])
    first, last = sampler.rows[0], sampler.rows[-1]
    added = (last[1] - first[1]) / (last[0] - first[0]) * 2**10
    print(
        f"memory grows by {added:.2f} KiB per result; files {last[2] - first[2]:+}, threads {last[3] - first[3]:+}"
    )


def fill(stored, store, folder):
    """A study with this many results, added by the store without a driver."""
    study = plan(table(stored, store), out=folder)
    dataset = build_dataset(study.experiment.dataset, 0)
    study.folder.save(study.experiment, study.plan, study.registry.setup)
    started = time.perf_counter()
    with study.store() as opened:
        for run in study.plan.runs:
            loss = dataset.synthetic_loss(run.params, run.tokens, run.seed)
            opened.add(RunResult(run=run, status="completed", loss=loss, tokens=run.tokens, flops=run.flops))
    seconds, added = time.perf_counter() - started, len(study.plan.runs)
    print(f"{added:,} results added in {seconds:.0f} s ({added / seconds:.0f} per second)")


def time_commands(folder):
    for command, *options in COMMANDS:
        line = [sys.executable, "-c", MAIN, command, str(folder), *options]
        started = time.perf_counter()
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
        problem = "" if done.returncode == 0 else f"  status {done.returncode}: {done.stderr.strip()[-200:]}"
        print(f"flops-fit {command:8} {seconds:7.1f} s  peak of all so far {peak:6.0f} MiB{problem}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--stored", type=int, default=100_000)
    parser.add_argument("--store", default="sqlite")
    parser.add_argument("--folder", help="where the studies are made; by default the temporary folder")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.runs:
            drive(arguments.runs, arguments.store, Path(folder, "driven"))
        if arguments.stored:
            fill(arguments.stored, arguments.store, Path(folder, "filled"))
            time_commands(Path(folder, "filled"))


if __name__ == "__main__":
    main()
