"""Imports of user code from its source files alone.

Python runs a compiled file in ``__pycache__`` instead of the source if the two have the same time and size. In a
folder from another user, the compiled file may be other code than the source that you have read and allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)
from pathlib import Path

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


def _find_sources(path: str) -> FileFinder:
    """A path hook. Raises ImportError for a folder that the next hook must handle."""
    if not any(Path(path).is_relative_to(folder) for folder in _folders) or "site-packages" in Path(path).parts:
        raise ImportError
    return FileFinder(path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (SourceOnlyLoader, SOURCE_SUFFIXES))
