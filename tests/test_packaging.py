"""The wheel and the source distribution."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import flops_fit_core

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ["flops_fit_core", *sorted(path.parent.name for path in ROOT.glob("plugins/*/__init__.py"))]


def build(kind: str, folder: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` with the project's own backend."""
    code = f"import sys; from hatchling.build import build_{kind}; print(build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("dist"))


def sources(package: str) -> set[str]:
    """The Python files and stubs of a package, as an installed package has them."""
    folder = ROOT / package if package == "flops_fit_core" else ROOT / "plugins" / package
    return {
        str(Path(package) / path.relative_to(folder))
        for path in folder.rglob("*.py*")
        if path.suffix in (".py", ".pyi")
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_has_every_package_whole_and_typed(wheel: Path, package: str) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert (sources(package) | {f"{package}/py.typed"}) - names == set()


def test_the_wheel_has_nothing_else(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_the_wheel_has_the_entry_points_and_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"flops_fit-{flops_fit_core.__version__}.dist-info"
    points = configparser.ConfigParser()
    points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert dict(points["flops_fit"]) == PROJECT["entry-points"]["flops_fit"]
    assert dict(points["console_scripts"]) == PROJECT["scripts"]
    assert b"Apache License" in archive.read(f"{info}/licenses/LICENSE")


def test_the_version_is_written_once() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert importlib.metadata.version("flops-fit") == flops_fit_core.__version__
    assert f"version: {flops_fit_core.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_an_installed_wheel_offers_every_plugin(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    code = (
        "import json, sys, flops_fit_core as core, flops_fit_gpt as gpt\n"
        "from flops_fit_core.plugins import Registry; registry = Registry()\n"
        "files = [core.__file__, gpt.__file__]\n"
        "print(json.dumps([*files, sorted(registry.plugins), list(map(str, registry.problems))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    core, gpt, plugins, problems = json.loads(done.stdout)
    assert (Path(core).parents[1], Path(gpt).parents[1]) == (target, target)
    assert plugins == sorted(PROJECT["entry-points"]["flops_fit"])
    assert problems == []


def test_the_source_distribution_has_what_it_takes_to_build_and_test(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "tests/test_packaging.py", "docs/examples/text-gpt.toml"}
    assert needed - names == set()
    plugin_files = {f"plugins/{name}" for package in PACKAGES[1:] for name in sources(package)}
    assert (plugin_files | sources("flops_fit_core")) - names == set()


def test_no_file_of_the_core_is_in_a_plugins_way() -> None:
    """Plugins lie next to the core in an installation, under their own names."""
    assert all(package.startswith("flops_fit_") for package in PACKAGES)
    assert not any((ROOT / package).exists() for package in PACKAGES[1:])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is(package: str) -> None:
    folder = ROOT if package == "flops_fit_core" else ROOT / "plugins"
    doc = ast.get_docstring(ast.parse((folder / package / "__init__.py").read_text()))
    assert doc is not None
    assert len(doc.splitlines()[0]) > 20
