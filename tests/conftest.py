"""Fixtures that tests of several subjects share."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from flops_fit_core.registry import installed

pytest_plugins = ["pytester"]


class Site:
    """A real import path with real installed distributions on it, so that discovery itself is tested."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def module(self, name: str, source: str) -> None:
        """Put a module on the path."""
        (self.path / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    def distribution(self, name: str, entry_points: str = "", metadata: str = "", version: str = "1.0") -> None:
        """Install a distribution without modules: what pip leaves of it on the path."""
        info = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
        (info / "entry_points.txt").write_text(entry_points)
        importlib.invalidate_caches()

    def install(self, dist: str, plugin: str, source: str, version: str = "1.0") -> None:
        """Install a distribution with one plugin, a module of this source."""
        module = f"{dist.replace('-', '_')}_{plugin}"
        self.module(module, source)
        self.distribution(dist, f"[flops_fit]\n{plugin} = {module}\n", version=version)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An import path of this test's own; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    installed.cache_clear()
    yield Site(folder)
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin is not None and Path(origin).is_relative_to(folder):
            del sys.modules[name]
    installed.cache_clear()


@pytest.fixture(autouse=True)
def _nothing_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the caller's environment disables is there for the tests."""
    monkeypatch.delenv("FLOPS_FIT_DISABLE", raising=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless ``-m`` says which ones to run."""
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
