"""Two drivers that start together on one study of 50 runs: each run is trained once.

    python tests/benchmarks/two_drivers.py [--runs 50] [--stores sqlite json]

Two ``flops-fit run`` of one experiment file in one folder, started at the same moment, each with one worker. The
models themselves write down that they are trained. Prints how many runs each driver trained, how many were trained
or stored more than once, and both exit statuses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from small import text_table, write_text

from flops_fit_core import Study

PLUGIN = """
import os
from flops_fit_core.plugins import ModelSpec, Options, hookimpl

class NetOptions(Options):
    width: int = 8

def build(options, task):
    import torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(task.vocab_size, options.width)
            self.head = torch.nn.Linear(options.width, task.vocab_size)
            self.steps = 0
        def forward(self, ids):
            if self.training and torch.is_grad_enabled() and not ids.is_meta:
                self.steps += 1
                if self.steps == 20:
                    with open("trained", "a") as file:
                        file.write(f"{options.width} {torch.initial_seed()} {os.getppid()}\\n")
            return self.head(self.embedding(ids))
    return Net()

@hookimpl
def flops_fit_models():
    yield ModelSpec(name="counted", options=NetOptions, build=build, size="width")
"""


def measure(store: str, runs: int, folder: Path) -> None:
    table = text_table(
        write_text(folder / "text"),
        model="counted",
        counter="chinchilla",
        sweep={"budgets": [1e8], "sizes": [{"width": 8}, {"width": 10}], "seeds": list(range(runs // 2))},
        executor={"name": "processes", "workers": 1},
        store=store,
    )
    (folder / "fifty.json").write_text(json.dumps(table | {"name": "fifty"}))
    (folder / "counted_net.py").write_text(PLUGIN)
    start = "from flops_fit_core.cli import main; main()"
    command = [sys.executable, "-c", start, "run", "fifty.json", "-p", "counted_net"]
    drivers = [
        subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)
    ]
    said = [driver.communicate()[1].decode() for driver in drivers]
    trained = Counter(tuple(line.split()[:2]) for line in (folder / "trained").read_text().splitlines())
    by = Counter(line.split()[2] for line in (folder / "trained").read_text().splitlines())
    sys.path.insert(0, str(folder))
    study = Study.open(folder / "runs" / "fifty")
    with study.store() as kept:
        several = sum(len(kept.attempts(run.id)) > 1 for run in study.plan.runs)
    statuses = Counter(result.status for result in study.results)
    print(f"{store}: {len(study.plan.runs)} runs, {dict(statuses)}; ", end="")
    print(
        f"trained {sum(trained.values())} times, "
        f"{sum(count > 1 for count in trained.values())} more than once, {several} stored more than once; "
        f"by driver {[by[str(driver.pid)] for driver in drivers]}, "
        f"exit statuses {[driver.returncode for driver in drivers]}"
    )
    if any(driver.returncode for driver in drivers):
        print("\n".join(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--stores", nargs="+", default=["sqlite", "json"])
    given = parser.parse_args()
    for store in given.stores:
        with tempfile.TemporaryDirectory() as folder:
            measure(store, given.runs, Path(folder))


if __name__ == "__main__":
    main()
