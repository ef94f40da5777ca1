"""Imports run one way: the rooms of the core in one order, plugins on top of the public names only."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "flops_fit_core"
ROOMS = [
    "errors",
    "numbers",
    "records",
    "plugins",
    "config",
    "data",
    "fitting",
    "flops",
    "report",
    "planning",
    "training",
    "study",
    "tuning",
    "api",
    "testing",
    "cli",
]
"""Each imports only those above it."""
PUBLIC = [
    "flops_fit_core",
    *(f"flops_fit_core.{room}" for room in ("plugins", "data", "flops", "training", "fitting", "testing")),
]
"""Packages with public names, listed in their ``__init__.pyi``. Plugins import from nowhere else."""
HEAVY = {"torch", "numpy", "scipy", "matplotlib", "pandas"}


@cache
def parse(source: str) -> ast.Module:
    """Most tests read the same files."""
    return ast.parse(source)


def imports(source: str, package: str, *, at_import: bool = False) -> Iterator[tuple[str, str | None]]:
    """What a module imports: (module, name), with None for ``import module``.

    Args:
        source: Its text.
        package: Its package, for relative imports.
        at_import: Only what importing it imports: nothing in functions and under TYPE_CHECKING.
    """
    for node in _import_time_nodes(parse(source)) if at_import else ast.walk(parse(source)):
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


@cache
def public_names(module: str) -> list[str]:
    """The names in a package's ``__init__.pyi``, read without importing the package."""
    stub = ast.parse((ROOT / module.replace(".", "/") / "__init__.pyi").read_text())
    return [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]


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
    rooms = {path.stem for path in CORE.glob("*.py")} | {path.parent.name for path in CORE.glob("*/__init__.py")}
    assert rooms - {"__init__"} == set(ROOMS)


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
    assert rooms_used("from flops_fit_core import errors, Study", "flops_fit_core") == {"errors", "(public)"}
    assert rooms_used("from .. import config\nfrom ..study import Study", "flops_fit_core.training") == {
        "config",
        "study",
    }
    assert rooms_used("from . import study", "flops_fit_core") == {"study"}


@cache
def module_graph() -> dict[str, set[str]]:
    """Module of the core -> modules of the core that it imports anywhere, in functions too."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in CORE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imported = {
            f"{module}.{item}" if f"{module}.{item}" in files else module
            for module, item in imports(path.read_text(), package)
        }
        graph[name] = (imported & set(files)) - {name}
    return graph


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = module_graph()
    assert {"flops_fit_core.config", "flops_fit_core.study.train"} <= graph["flops_fit_core.study.study"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_a_circle_would_be_noticed() -> None:
    graph = {**module_graph(), "flops_fit_core.errors": {"flops_fit_core.study.study"}}
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "training"])
def test_torch_is_imported_in_functions_except_by_training(room: str) -> None:
    for path in modules_of(room):
        roots = {module.split(".")[0] for module, _ in imports(path.read_text(), "", at_import=True)}
        assert "torch" not in roots, path


def test_imports_at_import_time_are_separated_from_imports_in_functions() -> None:
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


def test_only_comparisons_import_scipy_stats_with_their_modules() -> None:
    """Its import takes 0.6 s, a fifth of a report. ``fitting/distributions.py`` has the usual quantiles."""
    importing = {
        str(path.relative_to(CORE))
        for path in CORE.rglob("*.py")
        for module, item in imports(path.read_text(), "", at_import=True)
        if module.startswith("scipy.stats") or (module, item) == ("scipy", "stats")
    }
    assert {Path(name).parent for name in importing} == {Path("fitting/comparison")}


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
        "from flops_fit_core import Experiment, registry\nfrom flops_fit_core.plugins import Options\n"
        "from flops_fit_core.training import work\n"
        "def f():\n  from flops_fit_core.plugins.registry import installed\n  import flops_fit_optim\n"
        "from flops_fit_gpt.model import GPT\nimport flops_fit_core"
    )
    names = forbidden_to_a_plugin(source, "flops_fit_gpt")
    assert sorted(names) == [
        "flops_fit_core",
        "flops_fit_core.plugins.registry.installed",
        "flops_fit_core.registry",
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
def test_every_public_name_can_be_imported(module: str) -> None:
    package = importlib.import_module(module)
    assert sorted(package.__all__) == sorted(public_names(module))
    assert [name for name in public_names(module) if not hasattr(package, name)] == []


def test_a_name_is_public_in_one_place() -> None:
    names = [name for module in PUBLIC for name in public_names(module)]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_the_root_has_at_most_40_names() -> None:
    assert len(public_names("flops_fit_core")) <= 40


def test_an_unknown_name_is_an_attribute_error() -> None:
    for module in ("flops_fit_core", "flops_fit_core.testing"):
        with pytest.raises(AttributeError, match="no_such_name"):
            importlib.import_module(module).no_such_name  # noqa: B018
