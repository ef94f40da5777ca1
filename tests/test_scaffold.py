"""``flops-fit plugins new``: its project can be installed, passes the conformance kit and can be swept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flops_fit_core import ConfigError, __version__
from flops_fit_core.cli.main import run
from flops_fit_core.cli.scaffold import NO_EXPERIMENT, write_plugin
from flops_fit_core.plugins.registry import KINDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project per kind, all installed together with the interpreter's packages."""
    parent = tmp_path_factory.mktemp("projects")
    folders = [write_plugin(f"new-{kind}", kind, parent) for kind in KINDS]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(parent / "site"), *map(str, folders)], check=True)
    return parent


def in_them(projects: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(projects / "site"), str(ROOT), str(ROOT / "plugins")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=projects, env=environment, capture_output=True, text=True
    )


def test_the_project_of_every_kind_is_discovered_by_its_entry_point(projects: Path) -> None:
    code = "from flops_fit_core.cli import main; main()"
    shown = in_them(projects, "-c", code, "plugins")
    assert (shown.returncode, shown.stderr) == (0, "")
    for kind in KINDS:
        assert f"new-{kind}/new-{kind}" in shown.stdout
        assert f"flops-fit-new-{kind} 0.1.0" in shown.stdout


@pytest.mark.parametrize(
    "kinds", [pytest.param(["model", "store"], id="two"), pytest.param(KINDS, id="all", marks=pytest.mark.slow)]
)
def test_a_project_passes_its_tests_as_written(projects: Path, kinds: list[str]) -> None:
    tests = [str(projects / f"flops-fit-new-{kind}" / "tests") for kind in kinds]
    done = in_them(projects, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-rA", *tests)
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"^PASSED .*test_new_(\w+)\.py", done.stdout, re.M)
    assert set(passed) == set(kinds)
    assert len(passed) > 4 * len(kinds)


@pytest.mark.slow
def test_every_kind_s_experiment_can_be_planned_and_uses_it(projects: Path) -> None:
    code = (
        "import flops_fit_core, tomllib, sys\n"
        "for path in sys.argv[1:]:\n"
        "    plan = flops_fit_core.plan(tomllib.load(open(path, 'rb')))\n"
        "    print(len(plan.plan.runs))\n"
    )
    kinds = [kind for kind in KINDS if kind not in NO_EXPERIMENT]
    files = [str(projects / f"flops-fit-new-{kind}" / "experiment.toml") for kind in kinds]
    done = in_them(projects, "-c", code, *files)
    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.split()] == [12] * len(kinds)
    for kind, file in zip(kinds, files, strict=True):
        assert f'"new-{kind}/new-{kind}"' in Path(file).read_text()


def test_a_project_requires_this_minor_version_of_flops_fit(tmp_path: Path) -> None:
    folder = write_plugin("mine", "store", tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    (requirement,) = project["dependencies"]
    major, minor, *_ = __version__.split(".")
    assert requirement == f"flops-fit>={major}.{minor},<{major}.{int(minor) + 1}"
    assert project["entry-points"]["flops_fit"] == {"mine": "flops_fit_mine"}


@pytest.mark.parametrize("name", ["flops-fit-rnn", "rnn"])
def test_the_prefix_may_be_written_or_not(name: str, tmp_path: Path) -> None:
    assert write_plugin(name, "model", tmp_path).name == "flops-fit-rnn"


@pytest.mark.parametrize("name", ["", "My RNN", "../rnn", "rnn_x", "9", "-x", "flops-fit-"])
def test_an_invalid_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a plugin's name: write lower case letters"):
        write_plugin(name, "model", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plugin("rnn", "model", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run(["plugins", "new", "rnn", "--kind", "store", "--out", str(tmp_path)]) == 2
    assert "flops-fit-rnn exists: choose another name" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_command_prints_the_next_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "new", "rnn", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert 'pip install -e ".[test]"' in output
    assert "flops-fit run experiment.toml" in output
    assert run(["plugins", "new", "rnn", "--kind", "modle", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'model'?" in capsys.readouterr().err
