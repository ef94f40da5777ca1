"""Kill a real sweep with trunks and dropout with SIGKILL during runs, and check that it ends bit-identical.

    python tests/benchmarks/resume.py [--kills 20] [--seed 0] [--workers 2]

The driver is killed at random moments and started again, until ``--kills`` kills have hit and the sweep is
finished. Checkpoints are written every half second. Every loss, curve and count must equal that of the same sweep
without kills. Prints the number of kills after which an unfinished run had a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from small import text_table, write_text

from flops_fit_core.study import Study

START = "from flops_fit_core.cli import main; main()"


def experiment(folder: Path, workers: int, steps: int) -> Path:
    table = text_table(
        write_text(folder / "text"),
        sweep={
            "budgets": [steps * 1.2e6, steps * 2.4e6, steps * 4.8e6],
            "sizes": [{"width": 8}, {"width": 16}],
            "seeds": [0, 1],
            "batch_size": 4,
        },
        schedule={"name": "wsd"},
        trainer={"num_evals": 3, "checkpoint_minutes": 0.5 / 60},
        executor={"name": "processes", "workers": workers},
    )
    file = folder / "experiment.json"
    file.write_text(json.dumps(table))
    return file


def start(file: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", START, "run", str(file), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def outcome(out: Path) -> dict[str, tuple]:
    """The values that must not differ, by run id."""
    return {
        result.id: (
            result.status,
            result.loss,
            result.curve,
            result.tokens,
            result.trained_tokens,
            result.attempt,
        )
        for result in Study.open(out).results
    }


def run_with_kills(file: Path, out: Path, kills: int, rng: random.Random) -> tuple[int, int, int]:
    """Numbers of kills, of kills that left a checkpoint of an unfinished run, and of starts."""
    hit = resumed = starts = 0
    while True:
        started = time.time()
        process = start(file, out)
        starts += 1
        while hit < kills and process.poll() is None and not written_since(out, started):
            time.sleep(0.05)
        try:
            process.wait(rng.uniform(0.0, 2.5) if hit < kills else None)
            return hit, resumed, starts
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            hit += 1
            time.sleep(0.5)
            resumed += bool(list(out.glob("checkpoints/*/latest.pt")))


def written_since(out: Path, moment: float) -> bool:
    """Whether a checkpoint has been written since ``moment``. Before that, a kill loses nothing."""
    times = [file.stat().st_mtime for file in out.glob("checkpoints/*/*.pt") if file.exists()]
    return any(modified > moment for modified in times)


def measure(kills: int, seed: int, workers: int, steps: int) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = experiment(folder, workers, steps)
        started = time.perf_counter()
        start(file, folder / "undisturbed").wait()
        seconds = time.perf_counter() - started
        hit, resumed, starts = run_with_kills(file, folder / "killed", kills, random.Random(seed))
        expected = outcome(folder / "undisturbed")
        is_equal = outcome(folder / "killed") == expected
        leftover = list((folder / "killed").glob("checkpoints/*/latest.pt"))
        print(f"undisturbed: {len(expected)} runs in {seconds:.0f} s")
        print(f"killed {hit} times in {starts} starts, {resumed} with a checkpoint of an unfinished run")
        print(
            f"every loss, curve and count equal: {is_equal}; checkpoints of unfinished runs left: {len(leftover)}"
        )
        return is_equal and not leftover and hit >= min(kills, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6000, help="length of the runs")
    arguments = parser.parse_args()
    return 0 if measure(arguments.kills, arguments.seed, arguments.workers, arguments.steps) else 1


if __name__ == "__main__":
    sys.exit(main())
