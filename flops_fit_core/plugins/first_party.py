"""First-party (user) code, and the first-party files that a file imports. Imports nothing.

First-party code does not come from the standard library, from flops-fit, from torch or from a ``site-packages``
folder: a script, a notebook, a package next to it, a package installed with ``pip install -e``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from flops_fit_core.plugins.syntax_hash import hash_syntax

_INSTALLED = {"site-packages", "dist-packages"}
_MOST_FILES = 2000


def is_first_party(module: str) -> bool:
    """Whether a module with this import name is first-party."""
    top = module.partition(".")[0]
    if top == "__main__":
        return True
    if top == "torch" or top in _flops_fit_packages():
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return top not in sys.stdlib_module_names
    return is_first_party_file(Path(file))


def is_first_party_file(file: Path) -> bool:
    """Whether a file is first-party."""
    return _INSTALLED.isdisjoint(file.parts) and not any(file.is_relative_to(folder) for folder in _stdlib())


@lru_cache(maxsize=1)
def _stdlib() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return paths["stdlib"], paths["platstdlib"]


@lru_cache(maxsize=1)
def _flops_fit_packages() -> frozenset[str]:
    """Import names of flops-fit's packages. A checkout is not in ``site-packages``."""
    try:
        points = importlib.metadata.distribution("flops-fit").entry_points
    except importlib.metadata.PackageNotFoundError:
        points = importlib.metadata.EntryPoints()
    return frozenset({"flops_fit_core", *(point.module.partition(".")[0] for point in points)})


# ---------------------------------------------------------------------------- files


def hash_files(files: Iterable[Path]) -> list[str]:
    """Hashes of the files' syntax trees, sorted; of the text, for a file that this Python cannot parse."""
    return sorted(hash_file(file) for file in files)


def hash_file(file: Path) -> str:
    """A hash of a file's syntax tree, or of its text if this Python cannot parse it. Raises OSError."""
    return _parsed(file)[0]


def with_imports(files: Iterable[Path]) -> set[Path]:
    """The files and the first-party files that they import, directly or indirectly."""
    closure: set[Path] = set()
    queue = list(files)
    roots = tuple(sorted(map(_root, queue)))
    while queue:
        file = queue.pop()
        if file not in closure and file.suffix == ".py" and file.is_file():
            closure.add(file)
            queue += _imported_by(file, roots)
    return closure


def imported_files(
    module: str, names: Iterable[str], level: int, folder: Path, roots: tuple[Path, ...] = ()
) -> Iterator[Path]:
    """The first-party files from which an import statement binds names.

    Args:
        module: The module that is imported, or from which names are imported.
        names: The names after ``import`` in ``from module import names``; empty for ``import module``.
        level: The number of leading dots.
        folder: The folder of the importing file.
        roots: Folders that the import of first-party code adds to Python's path.
    """
    modules = _locate(module, level, folder, roots)
    if not names:
        yield from (source.file for source in modules if source.file is not None)
        return
    for name in names:
        if not modules:
            return
        source = _submodule(modules[-1], name) or modules[-1]
        if source.file is not None:
            yield source.file


def package_files(file: Path) -> set[Path]:
    """Every file of the top-level package of a file. Without a package: all files in its folder and below.

    Raises ValueError for too many files to be a single project.
    """
    files: set[Path] = set()
    for path, folders, names in os.walk(_root(file) / _top_package(file)):
        folders[:] = [name for name in folders if not _is_foreign(Path(path) / name)]
        files |= {Path(path) / name for name in names if name.endswith(".py")}
        if len(files) > _MOST_FILES:
            raise ValueError(f"{path} is in a folder of more than {_MOST_FILES} files")
    return files


def _is_foreign(folder: Path) -> bool:
    """Whether a folder is not part of the project, such as a virtual environment or ``.git``."""
    return folder.name.startswith((".", "__")) or folder.name in _INSTALLED or (folder / "pyvenv.cfg").exists()


def _root(file: Path) -> Path:
    """The folder that contains a file's top-level package, or the file itself if it is in no package."""
    folder = file.parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def _top_package(file: Path) -> Path:
    parts = file.relative_to(_root(file)).parts
    return Path(parts[0] if len(parts) > 1 else "")


class _ModuleSource(NamedTuple):
    """A module's source file and the folders of its submodules."""

    file: Path | None
    folders: tuple[Path, ...] = ()


def _locate(module: str, level: int, folder: Path, roots: tuple[Path, ...]) -> list[_ModuleSource]:
    """The first-party packages that contain a module, and the module last; empty if it is not first-party."""
    parts = module.split(".") if module else []
    if level:
        for _ in range(level - 1):
            folder = folder.parent
        init = folder / "__init__.py"
        sources = [_ModuleSource(init if init.exists() else None, (folder,))]
    else:
        top = _find_top(parts[0], (*roots, _root(folder / "x.py")))
        if top is None:
            return []
        sources, parts = [top], parts[1:]
    for part in parts:
        source = _submodule(sources[-1], part)
        if source is None:
            return []
        sources.append(source)
    return sources


def _submodule(package: _ModuleSource, name: str) -> _ModuleSource | None:
    for folder in package.folders:
        if (folder / name / "__init__.py").is_file():
            return _ModuleSource(folder / name / "__init__.py", (folder / name,))
        if (folder / f"{name}.py").is_file():
            return _ModuleSource(folder / f"{name}.py")
        if (folder / name).is_dir():
            return _ModuleSource(None, (folder / name,))
    return None


def _find_top(name: str, roots: tuple[Path, ...]) -> _ModuleSource | None:
    """A top-level module on Python's path, otherwise next to the packages or files that import it."""
    if name in sys.stdlib_module_names or not is_first_party(name):
        return None
    source = _find_on_path(name, tuple(sys.path)) or _submodule(_ModuleSource(None, roots), name)
    if source is None or not all(is_first_party_file(file) for file in (source.file, *source.folders) if file):
        return None
    return source


@lru_cache(maxsize=1000)
def _find_on_path(name: str, path: tuple[str, ...]) -> _ModuleSource | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        return None
    file = Path(spec.origin) if spec.has_location and spec.origin is not None else None
    return _ModuleSource(file, tuple(map(Path, spec.submodule_search_locations or ())))


# ---------------------------------------------------------------------------- one file


def _imported_by(file: Path, roots: tuple[Path, ...]) -> list[Path]:
    """The first-party files that a file imports, also inside functions. If it imports by a computed name: all
    files of its package."""
    _, imports, is_computed = _parsed(file)
    files = [
        path
        for module, names, level in imports
        for path in imported_files(module, names, level, file.parent, roots)
    ]
    return [*files, *package_files(file)] if is_computed else files


_Import = tuple[str, tuple[str, ...], int]


def _parsed(file: Path) -> tuple[str, tuple[_Import, ...], bool]:
    stat = file.stat()
    return _parse(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4000)
def _parse(file: Path, modified: int, size: int) -> tuple[str, tuple[_Import, ...], bool]:
    """A file's hash, its imports, and whether it imports by a computed name."""
    text = file.read_bytes()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return hashlib.sha256(text).hexdigest()[:16], (), False
    nodes = list(_runtime_nodes(tree))
    imports = [imported for node in nodes for imported in _imports(node)]
    return hash_syntax([tree]), tuple(imports), any(_imports_by_computed_name(node) for node in nodes)


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under ``if TYPE_CHECKING``."""
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack += node.orelse
        else:
            stack += ast.iter_child_nodes(node)


def _imports(node: ast.AST) -> Iterator[_Import]:
    if isinstance(node, ast.ImportFrom):
        yield node.module or "", tuple(alias.name for alias in node.names), node.level
    elif _is_import_call(node) and (name := _constant_argument(node)):
        yield name.lstrip("."), (), len(name) - len(name.lstrip("."))
    elif isinstance(node, ast.Import):
        for alias in node.names:
            package, _, name = alias.name.rpartition(".")
            yield (package, (name,), 0) if alias.asname and package else (alias.name, (), 0)


def _imports_by_computed_name(node: ast.AST) -> bool:
    return _is_import_call(node) and not _constant_argument(node)


def _is_import_call(node: ast.AST) -> bool:
    """Whether a node is a call of a function that imports or lists modules by name."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in {"import_module", "__import__", "iter_modules", "walk_packages"}


def _constant_argument(node: ast.AST) -> str:
    argument = node.args[0] if isinstance(node, ast.Call) and node.args else None
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ""
