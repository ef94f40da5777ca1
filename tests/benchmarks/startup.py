"""Start-up time of commands, as a ratio to the imports that each cannot do without.

    python tests/benchmarks/startup.py

``--help`` may take 1.5 times as long as importing typer and rich; ``status`` 2 times as long as importing these
and defining a pydantic model; ``fit``, of 20 rows without bootstrap draws, 1.5 times as long as importing numpy
and scipy.optimize. Times are CPU time of the child, the smallest of several; pairs alternate.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = "import sys; sys.argv[1:] = {words!r}; from flops_fit_core.cli import main; main()"
TYPER = "import typer, typer.main, rich.console, rich.table"
PYDANTIC = "import pydantic; type('Model', (pydantic.BaseModel,), {'__annotations__': {'x': int}})(x=1)"
CASES = {
    "--help": (TYPER, ["--help"], 1.5),
    "status": (f"{TYPER}; {PYDANTIC}", ["status", "{study}"], 2.0),
    "fit": ("import numpy, scipy.optimize", ["fit", "{table}", "--set", "draws=0"], 1.5),
}


def cpu_seconds(code: str, folder: str) -> float:
    """CPU time of a Python process with this code."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def write_table(path: Path) -> None:
    """Runs of a known law, at four budgets."""
    lines = ["params,tokens,flops,loss"]
    for budget in (1e18, 3e18, 1e19, 3e19):
        for k in range(5):
            params = (budget / 120) ** 0.5 * 2.0 ** (k - 2)
            tokens = budget / (6 * params)
            noise = 1.002 if (3 * k + len(lines)) % 4 < 2 else 0.998
            loss = (1.8 + 480 / params**0.35 + 2000 / tokens**0.36) * noise
            lines.append(f"{params:.6g},{tokens:.6g},{budget:.6g},{loss:.6f}")
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "runs.csv")
        table = {
            "name": "law", "sweep": {"budgets": [1e17, 1e18], "sizes": 3}, "model": "surface",
            "dataset": "surface", "executor": "local",
        }  # fmt: skip
        code = f"import flops_fit_core; flops_fit_core.run({table!r}, out='study')"
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
        for name, (imports, words, limit) in CASES.items():
            words = [word.format(study="study", table="runs.csv") for word in words]
            pairs = [
                (cpu_seconds(imports, folder), cpu_seconds(COMMAND.format(words=words), folder))
                for _ in range(repeats)
            ]
            least, command = (min(column) for column in zip(*pairs, strict=True))
            verdict = "" if command / least <= limit else "  TOO SLOW"
            print(f"{name:8} {command:.2f} s / {least:.2f} s = {command / least:.2f}x (at most {limit}){verdict}")


if __name__ == "__main__":
    main()
