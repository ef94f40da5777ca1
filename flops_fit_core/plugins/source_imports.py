"""Imports of user code from its source files alone.

Python runs a compiled file in ``__pycache__`` instead of the source if the two have the same time and size. In a
folder from another user, the compiled file may be other code than the source that you have read and allowed.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping
from functools import lru_cache
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)
from pathlib import Path

_PACKAGES = {"site-packages", "dist-packages"}
_folders: set[Path] = set()


class SourceOnlyLoader(SourceFileLoader):
    """Compiles the source at each import. Reads and writes no compiled file."""

    def path_stats(self, path: str) -> Mapping[str, int]:
        """Without the time of the source, Python does not look for a compiled file."""
        raise OSError


def import_from_source(folder: Path) -> None:
    """Import all modules below a folder from their sources from now on. Installed packages are not affected."""
    if _find_sources not in sys.path_hooks:
        sys.path_hooks.insert(0, _find_sources)
    _folders.add(folder)
    for path in list(sys.path_importer_cache):
        if Path(path).is_relative_to(folder):
            del sys.path_importer_cache[path]


def is_installed_file(file: Path) -> bool:
    """Whether a file or folder belongs to this Python installation, which only its owner can change.

    The name of a folder is not enough: another user may name any folder ``site-packages``.
    """
    added = [entry for entry in sys.path if Path(entry).name in _PACKAGES and Path(entry) not in _folders]
    return any(file.is_relative_to(folder) for folder in [*_installation(), *added])


@lru_cache(maxsize=1)
def _installation() -> list[str]:
    """The folders of modules and programs of this Python."""
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    return [*map(sysconfig.get_path, names), f"{sys.base_prefix}/bin"]


def _find_sources(path: str) -> FileFinder:
    """A path hook. Raises ImportError for a folder that the next hook must handle."""
    if not any(Path(path).is_relative_to(folder) for folder in _folders) or is_installed_file(Path(path)):
        raise ImportError
    return FileFinder(path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (SourceOnlyLoader, SOURCE_SUFFIXES))
