"""A real sweep, killed with SIGKILL at random moments, and resumed.

    python tests/benchmarks/kills.py [--kills 20] [--workers 5] [--stores sqlite json] [--seed 0]

12 small gpts on small text, through the command line with two worker processes. After each kill of the
driver: no worker survives, the store opens, every run for which a finished line was printed is there with
that loss, and no finished run has been trained again. A study that comes to its end must hold exactly the
planned runs, each completed at its first attempt; then the next one begins. With ``--workers``, so many
further kills are of a worker: the driver goes on, and the next run trains again what was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from small import text_table, write_text

from flops_fit_core.api import plan
from flops_fit_core.study import Study

START = "from flops_fit_core.cli import main; main()"
LINE = re.compile(r"^\[\d+/\d+\]  C (\S+)  size (\d+)  .*?  loss (\d+\.\d+)", re.MULTILINE)
MARK = "FLOPS_FIT_KILLS"


@dataclass
class Tally:
    """What was seen."""

    kills: int = 0
    moments: Counter = field(default_factory=Counter)
    lines: int = 0
    lost: int = 0
    retrained: int = 0
    orphans: int = 0
    unopened: int = 0
    studies: int = 0


class Killed:
    """One study that is killed and resumed until it is finished."""

    def __init__(self, folder: Path, store: str, sizes: int, flops: float, workers: int) -> None:
        self.folder = folder / "study"
        self.store = store
        self.mark = uuid.uuid4().hex
        table = text_table(
            write_text(folder / "text"),
            sweep={"budgets": [counter], "sizes": [{"width": 8 + 4 * k} for k in range(sizes)], "seeds": [0, 1]},
            executor={"name": "processes", "workers": workers} if workers else "local",
        )
        self.file = folder / "experiment.json"
        self.file.write_text(json.dumps(table))
        self.planned = {run.id for run in plan(table).plan.runs}
        self.output = folder / "output.txt"
        self.first_finished: dict[str, object] = {}

    def start(self) -> subprocess.Popen:
        """The driver, its finished lines going to a file."""
        with self.output.open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-c", START, "run", self.file, "--out", self.folder, "--store", self.store],
                stdout=subprocess.DEVNULL,
                stderr=output,
                env={**os.environ, MARK: self.mark},
            )

    def processes(self) -> list[int]:
        """Everything that this study's drivers started and that still lives, drivers included."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def survivors(self, seconds: float = 5.0) -> list[int]:
        """Processes that are still there after so long."""
        until = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.05)
        return left

    def results(self) -> dict:
        """The study's results by run id, read by this process; none where there is no study yet."""
        if not (self.folder / "plan.json").exists():
            return {}
        return {result.id: result for result in Study.open(self.folder).results}

    def attempts(self) -> dict[str, list]:
        with Study.open(self.folder).store() as store:
            return {run: store.attempts(run) for run in self.planned}

    def check(self, tally: Tally) -> None:
        """Hold the store to what was printed and to what it held before."""
        said = LINE.findall(self.output.read_text())
        tally.lines += len(said)
        try:
            results = self.results()
        except Exception as error:
            print(f"the store does not open: {error}")
            tally.unopened += 1
            return
        kept = {(f"{r.run.budget:.3g}", str(r.run.size), f"{r.loss:.4f}") for r in results.values() if r.loss}
        tally.lost += sum(line not in kept for line in said)
        done = {run: result.finished for run, result in results.items() if result.is_finished}
        tally.lost += len(self.first_finished.keys() - done.keys())
        tally.retrained += sum(done.get(run, at) != at for run, at in self.first_finished.items())
        self.first_finished |= {run: at for run, at in done.items() if run not in self.first_finished}

    def check_end(self, retried: bool = False) -> None:
        """A study at its end has exactly the planned runs, each trained once with success."""
        attempts = self.attempts()
        results = self.results()
        assert results.keys() == self.planned, "other runs than planned"
        assert all(result.status == "completed" for result in results.values())
        for all_of_one in attempts.values():
            assert sum(one.status == "completed" for one in all_of_one) == 1
            assert retried or len(all_of_one) == 1


@dataclass
class Moment:
    """When to kill: so many seconds after so many finished lines."""

    lines: float
    seconds: float

    @classmethod
    def at_random(cls, chosen: random.Random, left: int) -> Moment:
        """One in four while the driver and its workers start, the others around the finish of one of the next
        runs; mostly not the last, after which there is little left to kill."""
        if chosen.random() < 0.25 or left < 2:
            return cls(0, chosen.uniform(0.0, 8.0))
        return cls(chosen.randint(1, min(4, left - 1)), chosen.uniform(0.0, 0.8))

    def wait(self, study: Killed, driver: subprocess.Popen) -> bool:
        """False where the driver comes to its end before."""
        while len(LINE.findall(study.output.read_text())) < self.lines:
            if driver.poll() is not None:
                return False
            time.sleep(0.01)
        time.sleep(self.seconds)
        return driver.poll() is None


NEVER = Moment(1e9, 0.0)


def kill_driver(study: Killed, moment: Moment, tally: Tally) -> bool:
    """Run the sweep and kill its driver. True where it came to its end before that."""
    driver = study.start()
    if moment.wait(study, driver):
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        tally.kills += 1
    else:
        assert driver.returncode == 0, study.output.read_text()
    left = study.survivors()
    tally.orphans += len(left)
    study.check(tally)
    tally.moments[len(study.first_finished)] += driver.returncode != 0
    return driver.returncode == 0


def kill_worker(study: Killed, moment: Moment, tally: Tally, chosen: random.Random) -> bool:
    """Run the sweep, kill one worker, and let the driver come to its end."""
    driver = study.start()
    if moment.wait(study, driver) and (workers := sorted(set(study.processes()) - {driver.pid})):
        os.kill(chosen.choice(workers), signal.SIGKILL)
        tally.kills += 1
    assert driver.wait() in (0, 1), study.output.read_text()
    tally.orphans += len(study.survivors())
    study.check(tally)
    tally.moments[len(study.first_finished)] += 1
    return driver.returncode == 0


def run_kills(
    store: str, kills: int, *, of_workers: bool, seed: int, sizes: int = 6, flops: float = 4e8, workers: int = 2
) -> Tally:
    """So many kills, over as many studies as that takes."""
    chosen = random.Random(seed)
    tally = Tally()
    while tally.kills < kills:
        with tempfile.TemporaryDirectory() as folder:
            study = Killed(Path(folder), store, sizes, flops, workers)
            tally.studies += 1
            ended = False
            while not ended:
                left = len(study.planned) - len(study.first_finished)
                moment = Moment.at_random(chosen, left) if tally.kills < kills else NEVER
                if of_workers:
                    ended = kill_worker(study, moment, tally, chosen)
                else:
                    ended = kill_driver(study, moment, tally)
            study.check_end(retried=of_workers)
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--stores", nargs="+", default=["sqlite", "json"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("store   killed   kills  studies  finished lines  lost  trained again  orphans  unopened  done at kills")
    for store in given.stores:
        for of_workers, kills in ((False, given.kills), (True, given.workers)):
            if kills:
                tally = run_kills(store, kills, of_workers=of_workers, seed=given.seed)
                moments = " ".join(f"{done}:{times}" for done, times in sorted(tally.moments.items()) if times)
                print(
                    f"{store:7s} {'worker' if of_workers else 'driver':6s}  {tally.kills:6d}  {tally.studies:7d}"
                    f"  {tally.lines:14d}  {tally.lost:4d}  {tally.retrained:13d}  {tally.orphans:7d}"
                    f"  {tally.unopened:8d}  {moments}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
