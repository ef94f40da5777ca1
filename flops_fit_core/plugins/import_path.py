"""A user's own function or class, named in an option: ``my_package.models:make`` or ``models.py:make``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import AfterValidator

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.first_party import hash_file, hash_files, with_imports


def _located(written: str) -> str:
    place, colon, name = written.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ValueError(f"{written!r}: write package.module:name, or file.py:name")
    file = Path(place if place.endswith(".py") else f"{place.replace('.', '/')}.py").expanduser().absolute()
    return f"{file}:{name}" if place.endswith(".py") or file.exists() else written


ImportPath = Annotated[str, AfterValidator(_located)]
"""Type of an option that names something in the user's code. What is in the working directory becomes an absolute
path, so that workers, and those who open the study from another folder, find it. Mark it ``Runtime()`` and let
:func:`code_hash` identify the runs."""


def import_object(path: str, what: str) -> Any:
    """What an ``ImportPath`` names. ``what`` begins messages: ``model 'callable'``.

    A file is imported as part of the package it is in; where it is in none, under a name of its own, with its
    folder behind all others on the path, so that it finds its neighbours.

    Raises ConfigError, with the reason, where it cannot be imported, and with what there is where it has no such
    name.
    """
    place, _, name = path.rpartition(":")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what}: cannot import {place}: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        there = ", ".join(one for one in vars(module) if not one.startswith("_")) or "nothing"
        raise ConfigError(f"{what}: {place} has no {name!r}; it has: {there}")
    return getattr(module, name)


def code_hash(path: str) -> str | None:
    """Of the file that an ``ImportPath`` names and the first-party files that it imports, directly or not: 16
    hexadecimal digits, the same under every version of Python. None if there is no such file.

    Comments, docstrings and layout change nothing, nor do the places of the files. What is installed in
    ``site-packages`` is not looked at. A file that imports by a computed name counts with its package.
    """
    place, _, name = path.rpartition(":")
    try:
        file = Path(place) if place.endswith(".py") else _file_of(place)
        if file is None or not file.is_file():
            return None
        imported = with_imports([file]) - {file}
        parts = [name, hash_file(file), *hash_files(imported)]
    except (OSError, ValueError, ImportError):
        return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _file_of(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _from_file(file: Path) -> ModuleType:
    folder, names = file.parent, [] if file.name == "__init__.py" else [file.stem]
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # behind what is installed, which it shall not hide
    own = f"flops_fit_file_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if len(names) > 1 or file.name == "__init__.py":
        return importlib.import_module(".".join(names))
    return sys.modules[own] if own in sys.modules else _execute(file, own)


def _execute(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
