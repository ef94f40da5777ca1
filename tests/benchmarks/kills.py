"""Kill a real sweep with SIGKILL at random moments and resume it.

    python tests/benchmarks/kills.py [--kills 20] [--workers 5] [--stores sqlite json] [--seed 0]

The sweep trains 12 small gpts on small text, through the command line, with two worker processes. Checks after
each kill of the driver: no worker survives, the store opens, it has every run with a printed result line and the
printed loss, and no finished run is trained again. A finished study must have exactly the planned runs, each
completed at its first attempt. Then the next study begins. ``--workers`` sets the number of further kills that hit
a worker: the driver continues, and the next start trains the lost runs again.
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
    """Counts of events and violations."""

    kills: int = 0
    moments: Counter = field(default_factory=Counter)
    lines: int = 0
    lost: int = 0
    retrained: int = 0
    orphans: int = 0
    unopened: int = 0
    studies: int = 0


class Killed:
    """A study that is killed and resumed until it is finished."""

    def __init__(self, folder: Path, store: str, sizes: int, flops: float, workers: int) -> None:
        self.folder = folder / "study"
        self.store = store
        self.mark = uuid.uuid4().hex
        table = text_table(
            write_text(folder / "text"),
            sweep={"budgets": [flops], "sizes": [{"width": 8 + 4 * k} for k in range(sizes)], "seeds": [0, 1]},
            executor={"name": "processes", "workers": workers} if workers else "local",
        )
        self.file = folder / "experiment.json"
        self.file.write_text(json.dumps(table))
        self.planned = {run.id for run in plan(table).plan.runs}
        self.output = folder / "output.txt"
        self.first_finished: dict[str, object] = {}

    def start(self) -> subprocess.Popen:
        """Start the driver. Its standard error goes to a file."""
        with self.output.open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-c", START, "run", self.file, "--out", self.folder, "--store", self.store],
                stdout=subprocess.DEVNULL,
                stderr=output,
                env={**os.environ, MARK: self.mark},
            )

    def processes(self) -> list[int]:
        """Ids of living processes that this study's drivers started, including the drivers."""
        ids = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    ids.append(int(folder.name))
            except OSError:
                continue
        return ids

    def survivors(self, seconds: float = 5.0) -> list[int]:
        """Ids of processes that still live after ``seconds``."""
        deadline = time.monotonic() + seconds
        while (ids := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return ids

    def results(self) -> dict:
        """The study's results by run id. Empty if the study does not exist yet."""
        if not (self.folder / "plan.json").exists():
            return {}
        return {result.id: result for result in Study.open(self.folder).results}

    def attempts(self) -> dict[str, list]:
        with Study.open(self.folder).store() as store:
            return {run: store.attempts(run) for run in self.planned}

    def check(self, tally: Tally) -> None:
        """Compare the store with the printed lines and with its earlier content."""
        printed = LINE.findall(self.output.read_text())
        tally.lines += len(printed)
        try:
            results = self.results()
        except Exception as error:
            print(f"the store does not open: {error}")
            tally.unopened += 1
            return
        stored = {(f"{r.run.budget:.3g}", str(r.run.size), f"{r.loss:.4f}") for r in results.values() if r.loss}
        tally.lost += sum(line not in stored for line in printed)
        finished = {run: result.finished for run, result in results.items() if result.is_finished}
        tally.lost += len(self.first_finished.keys() - finished.keys())
        tally.retrained += sum(finished.get(run, date) != date for run, date in self.first_finished.items())
        self.first_finished |= {run: date for run, date in finished.items() if run not in self.first_finished}

    def check_end(self, retried: bool = False) -> None:
        """Check that a finished study has exactly the planned runs, each trained once successfully."""
        attempts = self.attempts()
        results = self.results()
        assert results.keys() == self.planned, "the study does not have exactly the planned runs"
        assert all(result.status == "completed" for result in results.values())
        for run_attempts in attempts.values():
            assert sum(attempt.status == "completed" for attempt in run_attempts) == 1
            assert retried or len(run_attempts) == 1


@dataclass
class Moment:
    """When to kill: ``seconds`` after the number of printed result lines reaches ``lines``."""

    lines: float
    seconds: float

    @classmethod
    def at_random(cls, rng: random.Random, remaining: int) -> Moment:
        """One in four during the start of driver and workers, otherwise when one of the next runs finishes.

        Mostly not the last run: little remains to be killed after it.
        """
        if rng.random() < 0.25 or remaining < 2:
            return cls(0, rng.uniform(0.0, 8.0))
        return cls(rng.randint(1, min(4, remaining - 1)), rng.uniform(0.0, 0.8))

    def wait(self, study: Killed, driver: subprocess.Popen) -> bool:
        """Wait for the moment. False if the driver ends before it."""
        while len(LINE.findall(study.output.read_text())) < self.lines:
            if driver.poll() is not None:
                return False
            time.sleep(0.01)
        time.sleep(self.seconds)
        return driver.poll() is None


NEVER = Moment(1e9, 0.0)


def kill_driver(study: Killed, moment: Moment, tally: Tally) -> bool:
    """Run the sweep and kill its driver. True if the driver finished before the kill."""
    driver = study.start()
    if moment.wait(study, driver):
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        tally.kills += 1
    else:
        assert driver.returncode == 0, study.output.read_text()
    tally.orphans += len(study.survivors())
    study.check(tally)
    tally.moments[len(study.first_finished)] += driver.returncode != 0
    return driver.returncode == 0


def kill_worker(study: Killed, moment: Moment, tally: Tally, rng: random.Random) -> bool:
    """Run the sweep, kill one worker, and wait for the driver to finish. True if every run is completed."""
    driver = study.start()
    if moment.wait(study, driver) and (workers := sorted(set(study.processes()) - {driver.pid})):
        os.kill(rng.choice(workers), signal.SIGKILL)
        tally.kills += 1
    assert driver.wait() in (0, 1), study.output.read_text()
    tally.orphans += len(study.survivors())
    study.check(tally)
    tally.moments[len(study.first_finished)] += 1
    return driver.returncode == 0


def run_kills(
    store: str, kills: int, *, of_workers: bool, seed: int, sizes: int = 6, flops: float = 4e8, workers: int = 2
) -> Tally:
    """Kill drivers or workers ``kills`` times, over as many studies as necessary."""
    rng = random.Random(seed)
    tally = Tally()
    while tally.kills < kills:
        with tempfile.TemporaryDirectory() as folder:
            study = Killed(Path(folder), store, sizes, flops, workers)
            tally.studies += 1
            ended = False
            while not ended:
                remaining = len(study.planned) - len(study.first_finished)
                moment = Moment.at_random(rng, remaining) if tally.kills < kills else NEVER
                ended = kill_worker(study, moment, tally, rng) if of_workers else kill_driver(study, moment, tally)
            study.check_end(retried=of_workers)
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--stores", nargs="+", default=["sqlite", "json"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("store   killed   kills  studies  printed lines  lost  trained again  orphans  unopened  finished:kills")
    for store in arguments.stores:
        for of_workers, kills in ((False, arguments.kills), (True, arguments.workers)):
            if kills:
                tally = run_kills(store, kills, of_workers=of_workers, seed=arguments.seed)
                moments = " ".join(
                    f"{finished}:{times}" for finished, times in sorted(tally.moments.items()) if times
                )
                print(
                    f"{store:7s} {'worker' if of_workers else 'driver':6s}  {tally.kills:6d}  {tally.studies:7d}"
                    f"  {tally.lines:13d}  {tally.lost:4d}  {tally.retrained:13d}  {tally.orphans:7d}"
                    f"  {tally.unopened:8d}  {moments}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
