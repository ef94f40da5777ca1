"""The lock file of the development environment agrees with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"torch"}
"""Installed before the other packages, from the index that suits the machine."""


def locked_versions() -> dict[str, list[Version]]:
    versions: dict[str, list[Version]] = {}
    for name, version in re.findall(
        r"^([\w.\-]+)(?:\[[^\]]*\])?==([^\s;]+)", (ROOT / ".ci/dev.lock").read_text(), re.M
    ):
        versions.setdefault(canonicalize_name(name), []).append(Version(version))
    return versions


def direct_dependencies() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["dev"], *extras["docs"], *extras["test"], *extras["test-core"]]
    requirements = [Requirement(text) for text in texts]
    return [item for item in requirements if item.name not in LEFT_OUT | {"flops-fit"}]


def test_every_direct_dependency_is_locked_to_a_version_that_pyproject_allows() -> None:
    locked = locked_versions()
    wrong = [
        str(requirement)
        for requirement in direct_dependencies()
        if not any(
            requirement.specifier.contains(version)
            for version in locked.get(canonicalize_name(requirement.name), [])
        )
    ]
    assert not wrong, f"type .ci/lock: .ci/dev.lock has no suitable version of {wrong}"


def test_every_locked_package_has_hashes_and_none_belongs_to_a_build_of_torch() -> None:
    text = (ROOT / ".ci/dev.lock").read_text()
    without_hash = re.findall(r"^([\w.\-]+(?:\[[^\]]*\])?==[^\\\n]*)\n", text, re.M)
    assert without_hash == []
    builds = [name for name in locked_versions() if re.match(r"(torch|triton|nvidia-.*|cuda-.*)$", name)]
    assert builds == []
