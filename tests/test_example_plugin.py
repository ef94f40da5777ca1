"""docs/examples/flops-fit-rnn as a third party uses it: a fresh environment, pip, a sweep, a law."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "flops-fit-rnn"


class Environment:
    """A separate virtual environment on top of the packages of this environment, because torch is large."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        own = next(folder.glob("lib/python*/site-packages"))
        below = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})"
        (own / "below.pth").write_text(f"{below}\n{ROOT}\n{ROOT / 'plugins'}\n")
        self.site = own

    def __call__(self, *command: str, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [str(self.bin / "python"), *command], cwd=cwd, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def flops_fit(self, *arguments: str, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        code = "from flops_fit_core.cli import main; main()"
        return self("-c", code, *arguments, cwd=cwd, status=status)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With the plugin installed by pip from a copy of its folder."""
    folder = tmp_path_factory.mktemp("third-party")
    project = shutil.copytree(EXAMPLE, folder / "flops-fit-rnn")
    made = Environment(folder / "venv")
    target = ["--target", str(made.site)]
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([sys.executable, *pip, *target, str(project)], check=True)
    return made


def test_it_is_found_by_its_entry_point(environment: Environment, tmp_path: Path) -> None:
    shown = json.loads(environment.flops_fit("plugins", "--json", cwd=tmp_path).stdout)
    assert shown["plugins"]["rnn"] == "flops-fit-rnn 1.0.0"
    assert [offer["name"] for offer in shown["offers"] if offer["source"] == "flops-fit-rnn 1.0.0"] == ["rnn/rnn"]
    assert shown["problems"] == []


def test_its_own_tests_pass(environment: Environment) -> None:
    done = environment("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "tests", cwd=EXAMPLE)
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.slow
def test_it_is_swept_and_fitted(environment: Environment, tmp_path: Path) -> None:
    """Its experiment with budgets a hundred times smaller, and shorter texts."""
    small = ["--set", "sweep.budgets=[1e8, 2e8, 4e8]", "--set", "sweep.min_steps=10"]
    trimmed = ["--set", "sweep.sizes=4", "--set", "trainer.eval_tokens=4096", "--set", "dataset.context=16"]
    experiment = str(EXAMPLE / "text-rnn.toml")
    environment.flops_fit(
        "run", experiment, *small, *trimmed, "--executor", "local", "--out", "study", cwd=tmp_path
    )
    runs = json.loads(environment.flops_fit("runs", "study", "--json", cwd=tmp_path).stdout)
    results = runs["runs"] if isinstance(runs, dict) else runs
    assert len(results) == 12
    assert {result["status"] for result in results} == {"completed"}
    fit = json.loads(environment.flops_fit("fit", "study", "--json", cwd=tmp_path).stdout)
    assert "rnn/rnn" in json.dumps(fit)


def test_without_the_plugin_its_experiment_says_what_is_missing(environment: Environment, tmp_path: Path) -> None:
    experiment = str(EXAMPLE / "text-rnn.toml")
    done = environment.flops_fit("plan", experiment, "--disable-plugin", "rnn", cwd=tmp_path, status=2)
    assert "no model named 'rnn'; available: " in done.stderr
    assert "disabled: rnn" in done.stderr
