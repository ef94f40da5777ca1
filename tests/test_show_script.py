"""``plan --executor slurm --show-script`` prints the batch script that a sweep submits. No Slurm is needed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from optional_packages import needs

TABLE = {
    "name": "law",
    "sweep": {"budgets": [1e17, 1e18], "sizes": 3},
    "model": "surface",
    "dataset": "surface",
    "device": "cpu",
}


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "law.json"
    file.write_text(json.dumps(TABLE))
    return file


@needs("submitit")
def test_the_script_has_the_options_and_the_resources_of_a_job(experiment: Path, call) -> None:
    options = {"partition": "gpu", "time": "2:00:00", "cpus": 4, "gpus": 2, "memory": "16G", "account": "lab"}
    settings = [word for name, value in options.items() for word in ("--set", f"executor.{name}={value}")]
    status, output, error = call("plan", experiment, "--show-script", "--executor", "slurm", *settings)
    assert status == 0, error
    assert "# 6 jobs in one array, at most 64 at a time" in output
    assert "# each job: 4 CPU cores, 2 GPUs, time limit 120 min, memory 16G" in output
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=(.+)$", output, re.M))
    assert directives["array"] == "0-5%6"
    assert directives["partition"] == "gpu"
    assert directives["account"] == "lab"
    assert directives["mem"] == "16G"
    assert directives["time"] == "120"
    assert directives["cpus-per-task"] == "4"
    assert directives["gpus-per-node"] == "2"
    assert "flops_fit_executors.slurm_start" in output
    assert not Path("runs").exists(), "nothing is written"


def test_an_executor_without_scripts_is_an_error(experiment: Path, call) -> None:
    status, _, error = call("plan", experiment, "--show-script")
    assert status == 2
    assert "executor 'executors/processes' submits no scripts: add --executor slurm" in error
