"""A real sweep with trunks and dropout, killed with SIGKILL in the middle of runs, ends bit-identical.

    python tests/benchmarks/resume.py [--kills 20] [--seed 0] [--workers 2]

The driver is killed at random moments and started again until that many kills have hit and the sweep is
finished; checkpoints are written every half second. Every loss, curve and count of the result must be what the
same sweep gives when nobody kills it. Prints how many kills found a checkpoint in the middle of a run.
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
    """What must not differ, by run id."""
    return {
        one.id: (one.status, one.loss, one.curve, one.tokens, one.trained_tokens, one.attempt)
        for one in Study.open(out).results
    }


def killed(file: Path, out: Path, kills: int, moments: random.Random) -> tuple[int, int, int]:
    """How often it was killed, how often a rolling checkpoint was there, and how often it was started."""
    hit = resumed = starts = 0
    while True:
        began = time.time()
        process = start(file, out)
        starts += 1
        while hit < kills and process.poll() is None and not written_since(out, began):
            time.sleep(0.05)
        try:
            process.wait(moments.uniform(0.0, 2.5) if hit < kills else None)
            return hit, resumed, starts
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            hit += 1
            time.sleep(0.5)
            resumed += bool(list(out.glob("checkpoints/*/latest.pt")))


def written_since(out: Path, moment: float) -> bool:
    """Whether a checkpoint has been written: before that, there is nothing to lose."""
    found = [file.stat().st_mtime for file in out.glob("checkpoints/*/*.pt") if file.exists()]
    return any(one > moment for one in found)


def measure(kills: int, seed: int, workers: int, steps: int) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = experiment(folder, workers, steps)
        began = time.perf_counter()
        start(file, folder / "whole").wait()
        whole = time.perf_counter() - began
        hit, resumed, starts = killed(file, folder / "killed", kills, random.Random(seed))
        same = outcome(folder / "whole") == outcome(folder / "killed")
        left = sorted(one.name for one in (folder / "killed").glob("checkpoints/*/latest.pt"))
        print(f"undisturbed: {len(outcome(folder / 'whole'))} runs in {whole:.0f} s")
        print(f"killed {hit} times in {starts} starts, {resumed} with a checkpoint in the middle of a run")
        print(f"every loss, curve and count equal: {same}; checkpoints left in the middle of a run: {len(left)}")
        return same and not left and hit >= min(kills, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6000, help="Length of the runs.")
    given = parser.parse_args()
    return 0 if measure(given.kills, given.seed, given.workers, given.steps) else 1


if __name__ == "__main__":
    sys.exit(main())
