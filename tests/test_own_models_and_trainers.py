"""The guides to models and trainers: their files run, and their tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from optional_packages import needs

from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed
from flops_fit_trainers.placeholders import NAMES
from flops_fit_transformers.counting import GATED, PLAIN

DOCS = Path(__file__).parents[1] / "docs"


def guide(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def files(name: str) -> dict[str, str]:
    """The files that a guide shows whole."""
    return {
        found[1]: found[0] for found in re.findall(r"```(?:python|toml)\n(# ([\w.-]+)\n.*?)```", guide(name), re.S)
    }


def test_the_guide_names_every_placeholder() -> None:
    rows = dict(re.findall(r"^\| `\{(\w+)\}` \| (.*) \|$", guide("trainers"), re.M))
    assert rows == NAMES


def test_the_guide_names_every_architecture_with_a_formula() -> None:
    listed = re.search(r'`counter = "model"` is a formula for (.*?), the same as', guide("models"), re.S)
    assert listed is not None
    assert set(re.findall(r"\w+", listed[1])) - {"and"} == GATED | PLAIN


def test_the_guide_names_every_family() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*\|.*\|.*\|$", guide("models"), re.M)
    assert set(rows) == {
        offer.spec.name for offer in installed().offers("model") if offer.source.startswith("flops-fit ")
    }


def test_the_experiment_with_numbers_alone_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(make_experiment(tomllib.loads(files("trainers")["megatron.toml"]), installed()))
    assert [run.params for run in plan.runs[:2]] == [123_000_000, 354_000_000]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "experiment"),
    [("models", "own.toml"), pytest.param("trainers", "own-lightning.toml", marks=needs("lightning"))],
    ids=["callable", "lightning"],
)
def test_an_experiment_of_a_guide_runs_to_its_end(name: str, experiment: str, tmp_path: Path) -> None:
    for file, text in files(name).items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "from flops_fit_core.cli import main; main()", "run", experiment],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert "[6/6]" in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
