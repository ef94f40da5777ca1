"""Studies that name code, and traces of the code that was executed.

Fixtures: ``finished``, ``study``, ``trace``.
"""

from __future__ import annotations

import json
import shutil

import pytest

from flops_fit_core import run

RECIPE = """
with open({trace!r}, "a") as file:
    file.write("{name} ")
from flops_fit_core import Hyperparameters
from flops_fit_core.plugins import RecipeSpec, hookimpl

@hookimpl
def flops_fit_recipes():
    yield RecipeSpec(name="own", build=lambda options, run: Hyperparameters(batch_size=8))
"""


def formula(**changes):
    return {
        "name": "formula",
        "sweep": {"budgets": [1e18, 1e19, 1e20], "sizes": 3, "batch_size": 8},
        "model": "surface/surface",
        "dataset": {"name": "surface/surface", "noise": 0.005},
        "executor": "local",
        "fitter": {"name": "parametric", "draws": 20},  # the fit is not under test
        **changes,
    }


def executed(trace):
    return trace.read_text().split() if trace.exists() else []


def edit_json(file, change):
    content = json.loads(file.read_text())
    for key in ("sha256", "ids"):  # a file without them is read as one of an earlier version
        content.pop(key, None)
    change(content)
    file.write_text(json.dumps(content))


def traced(trace, name):
    """A line of source that writes this name when it is executed."""
    return f"with open({str(trace)!r}, 'a') as file: file.write('{name} ')\n"


@pytest.fixture(name="finished", scope="module")
def make_finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "study"
    run(formula(), out=folder)
    return folder


@pytest.fixture(name="study")
def make_study(finished, tmp_path, monkeypatch):
    """A finished study of bundled plugins, which is the working directory."""
    folder = shutil.copytree(finished, tmp_path / "study")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(name="trace")
def make_trace(tmp_path):
    """A file in which each executed module of a test writes its name."""
    return tmp_path / "executed"
