"""Install real distributions in a folder, to test discovery."""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path


class Site:
    """An import path with installed distributions, in a folder of a test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def module(self, name: str, source: str) -> None:
        """Put a module on the path."""
        (self.path / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    def distribution(self, name: str, entry_points: str = "", metadata: str = "", version: str = "1.0") -> None:
        """Install the metadata of a distribution, as pip does, without modules."""
        info = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
        (info / "entry_points.txt").write_text(entry_points)
        importlib.invalidate_caches()

    def install(self, dist: str, plugin: str, source: str, version: str = "1.0") -> None:
        """Install a distribution with a plugin, which is a module with this source."""
        module = f"{dist.replace('-', '_')}_{plugin}"
        self.module(module, source)
        self.distribution(dist, f"[flops_fit]\n{plugin} = {module}\n", version=version)
