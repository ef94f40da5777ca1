"""Options that name a user's function or class: ``my_package.models:make`` or ``models.py:make``."""

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
from flops_fit_core.plugins.code_files import find_module
from flops_fit_core.plugins.first_party import hash_file, hash_files, with_imports
from flops_fit_core.plugins.options import RunsCode
from flops_fit_core.plugins.source_imports import SourceOnlyLoader, import_from_source


def _make_absolute(path: str) -> str:
    source, colon, name = path.rpartition(":")
    if not colon or not source or not name.isidentifier():
        raise ValueError(f"{path!r}: write package.module:name, or file.py:name")
    file = Path(source if source.endswith(".py") else f"{source.replace('.', '/')}.py").expanduser().absolute()
    return f"{file}:{name}" if source.endswith(".py") or file.exists() else path


ImportPath = Annotated[str, AfterValidator(_make_absolute), RunsCode()]
"""Type of an option that names a function or class in the user's code. A file in the working directory becomes an
absolute path, so that workers, and commands in another folder, find it. Mark the option ``Runtime()`` and identify
the runs by :func:`code_hash`."""


def import_object(path: str, what: str) -> Any:
    """The object that an ``ImportPath`` names. ``what`` is the start of messages: ``model 'callable'``.

    A file in a package is imported as a module of this package. Any other file is imported under a unique module
    name, and its folder is appended to Python's path, so that it can import its neighbours.

    Raises ConfigError, with the reason, if the module cannot be imported, and with the available names, if it does
    not have the name.
    """
    source, _, name = path.rpartition(":")
    try:
        module = _import_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what}: cannot import {source}: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        names = ", ".join(member for member in vars(module) if not member.startswith("_")) or "nothing"
        raise ConfigError(f"{what}: {source} has no {name!r}; it has: {names}")
    return getattr(module, name)


def code_hash(path: str) -> str | None:
    """A hash of the file that an ``ImportPath`` names and of the first-party files that it imports.

    Comments, docstrings, layout and the paths of the files do not change the hash. Indirect imports count,
    packages in ``site-packages`` do not. If a file imports by a computed name, all files of its package count.

    Returns 16 hexadecimal digits, the same for every version of Python; None if the file does not exist.
    """
    source, _, name = path.rpartition(":")
    try:
        file = Path(source) if source.endswith(".py") else _file_of(source)
        if file is None or not file.is_file():
            return None
        imported = with_imports([file]) - {file}
        parts = [name, hash_file(file), *hash_files(imported)]
    except (OSError, ValueError, ImportError):
        return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _file_of(module: str) -> Path | None:
    """The module's file. ``importlib.util.find_spec`` would import its packages."""
    files = find_module(module)
    return files[-1] if files else None


def _import_file(file: Path) -> ModuleType:
    folder, names = file.parent, [] if file.name == "__init__.py" else [file.stem]
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    import_from_source(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it does not shadow installed packages
    unique_name = f"flops_fit_file_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if len(names) > 1 or file.name == "__init__.py":
        return importlib.import_module(".".join(names))
    return sys.modules[unique_name] if unique_name in sys.modules else _execute(file, unique_name)


def _execute(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, loader=SourceOnlyLoader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up modules here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
