"""What a user sees of a plugin that was written for another version, misses a package, hangs, prints or exits."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from installing import Site

from flops_fit_core import ConfigError, __version__
from flops_fit_core.cli.main import run
from flops_fit_core.plugins import Registry
from flops_fit_core.plugins.registry import PluginSetup, explaining, registry_from
from flops_fit_core.plugins.registry.bundled import BUNDLED_KINDS

OFFER = """
from flops_fit_core.plugins import OptimizerSpec, hookimpl

@hookimpl
def flops_fit_optimizers():
    yield OptimizerSpec(name="tiger", build=lambda options, model, run: None, width_scaling="none"{more})
"""
GOOD = OFFER.format(more="")
COMMAND = [sys.executable, "-c", "from flops_fit_core.cli import main; main()", "plugins"]


def command_with(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``flops-fit`` in another process, with the installed packages of a site."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site.path), str(Path(__file__).parents[1])])}
    command = [*COMMAND[:-1], *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60)


def install(site: Site, source: str, *requires: str) -> None:
    site.module("rnn_module", source)
    metadata = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    site.distribution("flops-fit-rnn", "[flops_fit]\nrnn = rnn_module\n", metadata)


def problem() -> str:
    (plugin_problem,) = Registry().problems
    return str(plugin_problem)


# ---------------------------------------------------------------------------- versions


@pytest.mark.parametrize("requirement", ["flops-fit>=9", "flops_fit (<0.1)", "flops-fit[hf]==9.*"])
def test_a_plugin_for_another_version_is_not_even_imported(site: Site, requirement: str) -> None:
    install(site, "raise SystemExit('imported')", "torch", requirement)
    message = problem()
    assert message.startswith("rnn (flops-fit-rnn 1.0): register: RuntimeError: it needs flops-fit")
    assert f"and this is flops-fit {__version__}: pip install 'flops-fit" in message
    assert "or another version of flops-fit-rnn" in message


@pytest.mark.parametrize(
    "requirement",
    [
        "flops-fit",
        f"flops-fit=={__version__}",
        "flops-fit>=9; extra == 'new'",
        "flops-fit>=9; python_version < '3'",
    ],
)
def test_a_plugin_for_this_version_is_used(site: Site, requirement: str) -> None:
    install(site, GOOD, requirement)
    assert Registry().problems == []
    assert Registry().find("optimizer", "tiger").source == "flops-fit-rnn 1.0"


def test_requirements_that_cannot_be_read_are_left_to_pip(site: Site) -> None:
    install(site, GOOD, "flops-fit >>> 3")
    assert Registry().problems == []


def test_a_field_that_a_spec_does_not_have_is_explained(site: Site) -> None:
    install(site, OFFER.format(more=", width_scalling='adam'"))
    message = problem()
    assert (
        "got an unexpected keyword argument 'width_scalling' (did you mean 'width_scaling'? OptimizerSpec of "
        in message
    )
    assert f"flops-fit {__version__} has: name, options, revision, requires, " in message


def test_a_field_of_another_version_gets_the_list_of_fields(site: Site) -> None:
    install(site, OFFER.format(more=", adam_like=True"))
    assert re.search(r"argument 'adam_like' \(OptimizerSpec of flops-fit \S+ has: .*, width_scaling, ", problem())


def test_an_optimizer_that_does_not_declare_how_it_scales_with_the_width_is_left_out(site: Site) -> None:
    install(site, GOOD.replace(', width_scaling="none"', ""))
    message = problem()
    assert (
        "flops_fit_optimizers: ValueError: optimizer 'tiger': width_scaling is missing: write width_scaling="
        in message
    )


def test_a_name_that_the_core_does_not_have_is_explained(site: Site) -> None:
    install(site, "from flops_fit_core import Telepathy")
    message = problem()
    assert "import: ImportError: cannot import name 'Telepathy' from 'flops_fit_core'" in message
    assert message.endswith(f"(this is flops-fit {__version__}; the plugin was written for another version)")


# ---------------------------------------------------------------------------- missing packages


def test_a_missing_package_is_named_as_the_distribution_names_it(site: Site) -> None:
    install(site, "import not_a_module", "torch", "not-a-package>=2", "unused; extra == 'more'")
    message = problem()
    assert "import: ModuleNotFoundError: No module named 'not_a_module'" in message
    assert message.endswith("(it needs not-a-package>=2: pip install 'not-a-package>=2')")


def test_without_such_a_requirement_the_error_stands_alone(site: Site) -> None:
    install(site, "import not_a_module", "torch")
    assert problem().endswith("import: ModuleNotFoundError: No module named 'not_a_module'")


def test_a_module_given_by_name_is_explained_the_same_way(site: Site) -> None:
    site.module("own_models", "from flops_fit_core import Telepathy")
    with pytest.raises(ConfigError, match=r"the plugin module own_models: import: ImportError: .*this is"):
        registry_from(PluginSetup(modules={"own": "own_models"}, entry_points=False))


# ---------------------------------------------------------------------------- hanging


@pytest.mark.parametrize(
    ("source", "doing"),
    [
        ("import time; time.sleep(0.3)" + GOOD, "import"),
        (GOOD.replace("    yield", "    import time; time.sleep(0.3)\n    yield"), "flops_fit_optimizers"),
    ],
)
def test_a_slow_plugin_is_named_while_it_is_waited_for(
    site: Site, source: str, doing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(explaining, "WARN_AFTER", 0.05)
    install(site, source)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        registry = Registry(disabled=["stores"])
    assert registry.problems == []
    assert registry.find("optimizer", "tiger").plugin == "rnn", "it is used all the same"
    messages = [record.getMessage() for record in caplog.records if "rnn" in record.getMessage()]
    slow = f"plugin rnn (flops-fit-rnn 1.0): {doing} has not ended after 0.05 seconds"
    assert messages == [f"{slow}; FLOPS_FIT_DISABLE=rnn leaves it out"]


def test_a_plugin_that_hangs_is_named_on_the_terminal_and_can_be_interrupted_and_left_out(site: Site) -> None:
    install(site, "import time; time.sleep(3600)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site.path), str(Path(__file__).parents[1])])}
    with subprocess.Popen(COMMAND, env=environment, text=True, stdout=-1, stderr=-1) as hanging:
        assert hanging.stderr is not None
        first = hanging.stderr.readline()
        hanging.send_signal(signal.SIGINT)
        _, rest = hanging.communicate(timeout=60)
    prefix = "plugin rnn (flops-fit-rnn 1.0): "
    assert first == f"{prefix}import has not ended after 5 seconds; FLOPS_FIT_DISABLE=rnn leaves it out\n"
    assert rest.startswith(f"{prefix}interrupted in import; FLOPS_FIT_DISABLE=rnn leaves it out\n")
    assert "Traceback" not in rest
    assert hanging.returncode == 130
    without = subprocess.run(
        COMMAND, env={**environment, "FLOPS_FIT_DISABLE": "rnn"}, text=True, capture_output=True, timeout=60
    )
    assert (without.returncode, without.stderr) == (0, "")
    assert "disabled: rnn" in without.stdout


# ---------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise SystemExit('no licence')", "rnn (flops-fit-rnn 1.0): import: SystemExit: no licence"),
        (GOOD.replace("    yield", "    yield from [") + "] * 2", "offers 'tiger' twice"),
        ("import not_a_module", "rnn (flops-fit-rnn 1.0): import: ModuleNotFoundError: No module named"),
    ],
    ids=["raises SystemExit", "registers twice", "misses a package"],
)  # fmt: skip
def test_the_command_shows_other_plugins_and_the_problem(site: Site, source: str, message: str) -> None:
    install(site, source)
    done = command_with(site, "plugins")
    assert done.returncode == 1
    assert "optim/adamw" in done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("torn", [b"[flops_fit]\nno equals sign\n", b"[console_scripts]\nx\xff\n"])
def test_entry_points_that_cannot_be_read_stop_no_command(site: Site, torn: bytes) -> None:
    install(site, GOOD)
    site.distribution("torn")
    (site.path / "torn-1.0.dist-info" / "entry_points.txt").write_bytes(torn)
    done = command_with(site, "plugins", "--json")
    shown = json.loads(done.stdout)
    assert shown["plugins"]["rnn"] == "flops-fit-rnn 1.0"
    assert shown["plugins"].keys() >= BUNDLED_KINDS.keys()
    assert [problem for problem in shown["problems"] if not problem.startswith("torn 1.0: read metadata")] == []
    assert "Traceback" not in done.stderr


def test_a_plugin_that_imports_torch_when_it_is_discovered_is_named(site: Site) -> None:
    site.module("torch", "")  # stands for the real one, which takes seconds
    install(site, "import torch\n" + GOOD)
    done = command_with(site, "plugins")
    message = "rnn (flops-fit-rnn 1.0) imports torch at discovery, which slows every command: "
    assert (done.returncode, done.stderr) == (0, f"{message}import torch in build\n")
    assert "rnn/tiger" in done.stdout


LOUD = """
import ctypes, os, subprocess, sys
print("Python")
print("Python's own", file=sys.__stdout__, flush=True)
os.write(1, b"descriptor\\n")
subprocess.run(["echo", "subprocess"])
ctypes.CDLL(None).printf(b"C, at the end\\n")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="prints by the C library")
def test_what_a_plugin_prints_is_not_among_what_was_asked_for(site: Site) -> None:
    install(site, LOUD + GOOD)
    done = command_with(site, "plugins", "--json")
    assert done.returncode == 0
    assert sorted(done.stderr.split("\n")) == [
        "", "C, at the end", "Python", "Python's own", "descriptor", "subprocess"
    ]  # fmt: skip
    assert "rnn" in json.loads(done.stdout)["plugins"]


LOUD_LATER = """
from flops_fit_core.plugins import ModelSpec, Options, hookimpl

class LoudOptions(Options):
    width: int = 8

def build(options, task):
    from torch import nn

    class Loud(nn.Linear):
        def forward(self, x):
            print("forward")
            return super().forward(x)

    print("built")
    return nn.Sequential(nn.Embedding(256, options.width), Loud(options.width, 256))

@hookimpl
def flops_fit_models():
    yield ModelSpec(name="loud", options=LoudOptions, build=build, size="width")
"""


def test_what_a_plugin_prints_when_it_is_used_is_not_among_what_was_asked_for(site: Site, tmp_path: Path) -> None:
    install(site, LOUD_LATER)
    sweep = {"budgets": [2e9], "sizes": [{"width": 8}]}
    table = {"name": "loud", "sweep": sweep, "model": "loud", "dataset": "text", "optimizer": "adamw"}
    (tmp_path / "loud.json").write_text(json.dumps(table))
    done = command_with(site, "plan", str(tmp_path / "loud.json"), "--json", "--no-estimate")
    assert {"built", "forward"} <= set(done.stderr.split("\n"))
    assert json.loads(done.stdout)["name"] == "loud"


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["one.models", "two.models"], "-p one.models and -p two.models have the same plugin name, 'models'"),
        (["mine/models.py"], "-p mine/models.py: there is no such file"),
        (["models.py"], "-p models.py: there is no such file"),
    ],
)
def test_no_module_that_is_asked_for_is_dropped(
    modules: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plugins", *(word for module in modules for word in ("-p", module))]) == 2
    assert message in capsys.readouterr().err
