"""The files that an import or a command line executes, found without importing anything."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from flops_fit_core.plugins.first_party import is_first_party, with_imports
from flops_fit_core.plugins.source_imports import is_installed_file

LARGEST_FILE = 2**24
"""Bytes. A larger file is not hashed: it is data rather than code."""
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def find_module(module: str, paths: Sequence[str] = ()) -> list[Path]:
    """The files that ``import module`` executes: those of its packages, and its own file last.

    Args:
        module: An import name.
        paths: Folders to search after Python's path.

    Returns an empty list if the module is not found, or has no file. Imports nothing.
    """
    if not _MODULE.fullmatch(module):
        return []
    importlib.invalidate_caches()
    top, *names = module.split(".")
    spec = _find_top(top, paths)
    files, name = [], top
    for part in [*names, None]:
        if spec is None:
            return []
        if spec.has_location and spec.origin is not None:
            files.append(Path(spec.origin))
        if part is not None:
            name = f"{name}.{part}"
            spec = PathFinder.find_spec(name, list(spec.submodule_search_locations or ()))
    return files


def has_module(folder: Path, module: str) -> bool:
    """Whether a folder has the module, or the package that contains it."""
    top = folder / module.partition(".")[0]
    return top.is_dir() or top.with_suffix(".py").is_file()


def _find_top(name: str, paths: Sequence[str]) -> ModuleSpec | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        spec = None
    return spec or PathFinder.find_spec(name, list(paths))


def module_code(module: str, paths: Sequence[str] = ()) -> set[Path]:
    """The first-party files that ``import module`` executes, directly or by further imports.

    Empty for an installed module: other users cannot change it.
    """
    if not is_first_party(module):
        return set()
    return _with_imports(file for file in find_module(module, paths) if not is_installed_file(file))


def value_code(value: Any, folder: Path | None) -> set[Path]:
    """The first-party files that an option's value names: ``models.py:make``, ``package.module:name``, a program
    and its scripts (``python train.py``, ``python -m package.train``).

    Args:
        value: Text, or lists and tables of texts.
        folder: The program's working directory; None to consider absolute paths only.
    """
    files: set[Path] = set()
    for text in _texts(value):
        source, colon, name = text.rpartition(":")
        if colon and name.isidentifier() and source.endswith(".py"):
            files |= _with_imports([*package_inits(Path(source)), Path(source)])
        elif colon and name.isidentifier() and _MODULE.fullmatch(source):
            files |= module_code(source)
        else:
            files |= _command_code(text, folder)
    return files


def folder_code(folder: Path) -> set[Path]:
    """The modules in a folder and below. Any of them may be imported if the folder is on Python's path: a library
    may look for an optional package that only this folder has."""
    suffixes = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)
    files: set[Path] = set()
    visited: set[Path] = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        files |= {Path(path, name) for name in names if name.endswith(suffixes)}
        places = {name: Path(path, name).resolve() for name in folders}
        folders[:] = [name for name, place in places.items() if place not in visited]  # links may form a circle
        visited.update(places.values())
    return files


def package_inits(file: Path) -> list[Path]:
    """The ``__init__.py`` of each package that contains a file, which an import of the file executes first."""
    inits, folder = [], file.parent
    while (folder / "__init__.py").exists():
        inits.append(folder / "__init__.py")
        folder = folder.parent
    return inits[::-1]


def file_digest(file: Path) -> str:
    """The SHA-256 of a file; ``missing`` if it cannot be read.

    A large file is identified by its size and its time of change, which its owner cannot set.
    """
    try:
        status = file.stat()
        if status.st_size > LARGEST_FILE:
            return f"{status.st_size} bytes, changed at {status.st_ctime_ns}"
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return "missing"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.values() for text in _texts(item))
    elif isinstance(value, list | tuple):
        if all(isinstance(item, str) for item in value):
            yield shlex.join(value)  # a command as a list of arguments
        yield from (text for item in value for text in _texts(item))


def _command_code(text: str, folder: Path | None) -> set[Path]:
    words = list(_words(text))
    files: set[Path] = set()
    for before, word in zip(["", *words], words, strict=False):
        if folder is None and not Path(word).is_absolute():
            continue
        place = Path(os.path.normpath(folder or "/"))
        candidates = [Path(os.path.normpath(place / word))]
        if before == "-m":
            module = place.joinpath(*word.split("."))
            candidates = [module.with_suffix(".py"), module / "__init__.py", module / "__main__.py"]
        files |= {file for file in candidates if _is_regular(file) and not is_installed_file(file)}
    return _with_imports(files)


def _words(text: str) -> Iterator[str]:
    """The words of a command, also those of a word with spaces (``sh -c 'python train.py'``), and the values after
    an equals sign (``--config=run.yaml``)."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    for word in words:
        yield word
        if word != text and " " in word:
            yield from _words(word)
        elif "=" in word:
            yield word.partition("=")[2]


def _is_regular(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a name that is too long or has a null character
        return False


def _with_imports(files: Iterable[Path]) -> set[Path]:
    named = set(files)
    try:
        return named | with_imports(file for file in named if file.suffix == ".py")
    except (OSError, ValueError):  # ValueError: a folder with too many files to be a project
        return named
