"""Write small finished studies of this version to ``tests/fixtures/studies/VERSION/STORE/``.

    python tests/make_study_fixtures.py

``test_study_fixtures.py`` opens them with every later version. Existing folders are never changed: a later version
must read exactly these bytes. ``expected.json`` has the results, the fit and the plan for comparison.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import flops_fit_core

FIXTURES = Path(__file__).parent / "fixtures" / "studies"
COMMAND = (sys.executable, "-c", "from flops_fit_core.cli import main; main()")
STORES = ("sqlite", "json")
EXPERIMENT = {
    "name": "surface",
    "sweep": {"budgets": [1e17, 1e18, 1e19], "sizes": 3},
    "model": "surface",
    "dataset": {"name": "surface", "noise": 0.005},
    "executor": "local",
}
READING = (("runs", "--json"), ("status", "--json"), ("fit", "--fitter", "parametric", "--json"))


def main() -> None:
    """Make the folders of this version that do not exist."""
    version = FIXTURES / flops_fit_core.__version__
    for store in STORES:
        if (version / store).exists():
            print(f"{version / store} exists: unchanged")
            continue
        make_study(version / store, store)
        print(f"wrote {version / store}")


def make_study(target: Path, store: str) -> None:
    """Train the study in a temporary folder, and copy it without report and draws of the fit."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Path(folder) / "experiment.json"
        experiment.write_text(json.dumps({**EXPERIMENT, "store": store}))
        study = Path(folder) / "study"
        run("run", str(experiment), "--out", str(study), "--no-report", cwd=folder)
        (study / "fit.json").unlink()
        expected = {command: json.loads(run(command, str(study), *words)) for command, *words in READING}
        shutil.copytree(study, target, ignore=shutil.ignore_patterns("*.lock", "*-shm"))
        (target / "expected.json").write_text(json.dumps(summarise(expected), indent=1))


def summarise(answers: dict[str, Any]) -> dict[str, Any]:
    """The values that every later version must give: ids, states, losses, exponents."""
    columns = ("id", "status", "params", "tokens", "loss")
    return {
        "runs": [{column: row[column] for column in columns} for row in answers["runs"]],
        "states": answers["status"]["runs"],
        "exponents": {name: answers["fit"]["exponents"][name]["value"] for name in ("a", "b")},
    }


def run(*words: str, cwd: str | None = None) -> str:
    """Standard output of a command line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*COMMAND, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"flops-fit {' '.join(words)}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
