"""The values of ``-p``: import names and files of modules that the user names as plugins."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.code_files import has_module


def find_plugins(values: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Plugin name (the last part of the module) -> import name, and the folders from which they are imported.

    An import name is looked up in Python's path and, if the working directory has such a module, there. A file is
    imported from its folder, or from the folder of its package.

    Raises ConfigError for a missing file, for two plugins of one name, and for a module that Python would import
    from another place.
    """
    named: dict[str, str] = {}
    paths: dict[str, None] = {}
    for value in values:
        module, root = _from_file(value) if _is_file(value) else (value, Path.cwd())
        if has_module(root, module):
            _check_place(value, module, root)
            paths[str(root)] = None
        name = module.rpartition(".")[2]
        if (other := named.setdefault(name, module)) != module:
            raise ConfigError(f"-p {other} and -p {module} have the same plugin name, {name!r}")
    return named, tuple(paths)


def _is_file(value: str) -> bool:
    return value.endswith(".py") or "/" in value or "\\" in value


def _from_file(value: str) -> tuple[str, Path]:
    """The import name of a file and the folder from which it is imported."""
    file = Path(value).expanduser().absolute()
    if file.is_dir() and (file / "__init__.py").exists():
        file = file / "__init__.py"
    if not file.is_file():
        raise ConfigError(f"-p {value}: there is no such file")
    names = [] if file.name == "__init__.py" else [file.stem]
    folder = file.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    if file.suffix != ".py" or not all(name.isidentifier() for name in names):
        raise ConfigError(
            f"-p {value}: Python cannot import a file of this name. Rename it, for example to my_plugin.py"
        )
    return ".".join(names), folder


def _check_place(value: str, module: str, root: Path) -> None:
    """Raises ConfigError if Python finds the module elsewhere before it searches ``root``."""
    top = module.partition(".")[0]
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return
    if spec is None:
        return
    places = [Path(spec.origin).parent] if spec.has_location and spec.origin else []
    places += [Path(place) for place in spec.submodule_search_locations or ()]
    if spec.origin and spec.origin.endswith("__init__.py"):
        places.append(Path(spec.origin).parent.parent)
    if any(place.resolve() in (root.resolve(), (root / top).resolve()) for place in places):
        return
    raise ConfigError(
        f"-p {value}: Python has another module {top!r} ({spec.origin or 'built in'}), which it would import "
        f"instead of the one in {root}. Rename yours"
    )
