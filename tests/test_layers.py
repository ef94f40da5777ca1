"""Imports run one way: the rooms of the core in one order, plugins on top of the public names only."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "flops_fit_core"
ROOMS = [
    "errors",
    "syntax",
    "first_party",
    "importing",
    "records",
    "parquet_results",
    "retired_stores",
    "item_hash",
    "code_names",
    "source_lookup",
    "object_parts",
    "computed_values",
    "identity",
    "contracts",
    "tasks",
    "causality",
    "custom_task",
    "specs",
    "hookspecs",
    "registry",
    "config",
    "own_weights",
    "windows",
    "dispatch_mode",
    "product_formulas",
    "parameter_usage",
    "parameter_counts",
    "measure",
    "audit",
    "planning",
    "folder",
    "drivers",
    "training",
    "model_check",
    "family_flops",
    "sweep",
    "fitting",
    "report",
    "other_results",
    "other_stores",
    "study",
    "moving",
    "tuning",
    "inline",
    "output_parts",
    "target_relation",
    "loss_values",
    "loss_trials",
    "loss_probe",
    "inline_batches",
    "inline_checks",
    "inline_streams",
    "inline_sources",
    "inline_overlap",
    "inline_arguments",
    "inline_data",
    "api",
    "retrying",
    "examining",
    "scaffold",
    "cli",
    "testing",
]
"""Each imports only those above it."""
PUBLIC = ["flops_fit_core", "flops_fit_core.training", "flops_fit_core.fitting", "flops_fit_core.testing"]
"""Where the public names are: what a plugin may import from, and what has to be in ``__all__``."""
HEAVY = {"torch", "numpy", "scipy", "matplotlib", "pandas"}


def imports(source: str, package: str, *, at_import: bool = False) -> Iterator[tuple[str, str | None]]:
    """What a module imports: (module, name), with None for ``import module``.

    Args:
        source: Its text.
        package: Its package, for relative imports.
        at_import: Only what importing it imports: nothing in functions and under TYPE_CHECKING.
    """
    for node in _import_time_nodes(ast.parse(source)) if at_import else ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, node.module or ""]).strip(".")
            yield from ((module, alias.name) for alias in node.names)


def _import_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _import_time_nodes(other)
            continue
        yield child
        yield from _import_time_nodes(child)


def rooms_used(source: str, package: str) -> set[str]:
    """The rooms of the core that a module imports; ``(public)`` for a name of the core itself."""
    used = set()
    for module, name in imports(source, package):
        if module == "flops_fit_core" and name != "__version__":
            used.add(name if name in ROOMS else "(public)")
        elif module.startswith("flops_fit_core."):
            used.add(module.split(".")[1])
    return used


def public_names(module: str) -> list[str]:
    """``__all__``, read without importing."""
    path = ROOT / module.replace(".", "/") / "__init__.py"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no __all__")


def forbidden_to_a_plugin(source: str, plugin: str) -> list[str]:
    """What a module of a plugin imports of ours without being allowed to."""
    wrong = []
    for module, name in imports(source, plugin):
        if not module.startswith("flops_fit") or module.split(".")[0] == plugin:
            continue
        if name is None or module not in PUBLIC or name not in public_names(module):
            wrong.append(f"{module}.{name}" if name else module)
    return wrong


# ---------------------------------------------------------------------------- the core


def test_every_room_has_its_place_in_the_order() -> None:
    there = {path.stem for path in CORE.glob("*.py")} | {path.parent.name for path in CORE.glob("*/__init__.py")}
    assert there - {"__init__"} == set(ROOMS)


def modules_of(room: str) -> list[Path]:
    path = CORE / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_above_it(room: str) -> None:
    below = {*ROOMS[ROOMS.index(room) + 1 :], "(public)"}
    for path in modules_of(room):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        assert below & rooms_used(path.read_text(), package) == set(), path


def test_an_import_from_below_would_be_seen() -> None:
    assert rooms_used("from flops_fit_core.cli import main", "flops_fit_core") == {"cli"}
    assert rooms_used("def f():\n  import flops_fit_core.api as a", "flops_fit_core") == {"api"}
    assert rooms_used("from flops_fit_core import specs, Registry", "flops_fit_core") == {"specs", "(public)"}
    assert rooms_used("from .. import sweep\nfrom ..study import Study", "flops_fit_core.training") == {
        "sweep",
        "study",
    }
    assert rooms_used("from . import sweep", "flops_fit_core") == {"sweep"}


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "training"])
def test_torch_is_imported_in_functions_except_by_training(room: str) -> None:
    for path in modules_of(room):
        found = {module.split(".")[0] for module, _ in imports(path.read_text(), "", at_import=True)}
        assert "torch" not in found, path


def test_what_a_module_imports_at_once_is_told_from_what_its_functions_import() -> None:
    source = (
        "if TYPE_CHECKING:\n  import a\nelse:\n  import b\ndef f():\n  import c\nclass C:\n  import d\n"
        "  def g(self):\n    import e\ntry:\n  import f\nexcept ImportError:\n  import g"
    )
    assert [module for module, _ in imports(source, "", at_import=True)] == ["b", "d", "f", "g"]


def test_importing_the_core_imports_nothing_heavy() -> None:
    code = (
        f"import sys, {', '.join(f'flops_fit_core.{room}' for room in ROOMS[: ROOMS.index('config') + 1])}\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# ---------------------------------------------------------------------------- plugins

PLUGIN_MODULES = sorted(ROOT.glob("plugins/*/**/*.py"))


@pytest.mark.parametrize("path", PLUGIN_MODULES, ids=lambda path: str(path.relative_to(ROOT / "plugins")))
def test_a_plugin_uses_only_the_public_names(path: Path) -> None:
    plugin = path.relative_to(ROOT / "plugins").parts[0]
    assert forbidden_to_a_plugin(path.read_text(), plugin) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/**/*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_uses_only_the_public_names(path: Path) -> None:
    own = {part for part in path.relative_to(ROOT).parts if part.startswith("flops_fit")} or {""}
    assert forbidden_to_a_plugin(path.read_text(), own.pop()) == []


def test_a_private_way_in_would_be_seen() -> None:
    source = (
        "from flops_fit_core import Options, Experiment, _LAZY\nfrom flops_fit_core.training import work\n"
        "def f():\n  from flops_fit_core.registry import installed\n  import flops_fit_optim\n"
        "from flops_fit_gpt.model import GPT\nimport flops_fit_core"
    )
    found = forbidden_to_a_plugin(source, "flops_fit_gpt")
    assert sorted(found) == [
        "flops_fit_core",
        "flops_fit_core._LAZY",
        "flops_fit_core.registry.installed",
        "flops_fit_optim",
    ]


def test_every_plugin_is_a_typed_package_with_an_entry_point() -> None:
    import tomllib

    folders = {path.parent.name for path in ROOT.glob("plugins/*/__init__.py")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["entry-points"]["flops_fit"].values()) == folders
    assert {path.parent.name for path in ROOT.glob("plugins/*/py.typed")} == folders
    assert (CORE / "py.typed").exists()


# ---------------------------------------------------------------------------- public names


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_sorted_and_there(module: str) -> None:
    names = public_names(module)
    assert names == sorted(set(names))
    imported = importlib.import_module(module)
    assert [name for name in names if not hasattr(imported, name)] == []


@pytest.mark.parametrize("module", PUBLIC)
def test_what_a_package_imports_for_others_is_public(module: str) -> None:
    source = (ROOT / module.replace(".", "/") / "__init__.py").read_text()
    given = {
        name
        for where, name in imports(source, module)
        if where.startswith("flops_fit_core") and name is not None and not name.startswith("_")
    }
    assert given - set(public_names(module)) == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    for module in ("flops_fit_core", "flops_fit_core.testing"):
        with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
            importlib.import_module(module).no_such_name  # noqa: B018
