"""Every bundled plugin is tested with the conformance kit of its kind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from flops_fit_core.plugins.registry import KINDS, installed
from flops_fit_core.plugins.registry.offers import SPEC_TYPES

TESTS = Path(__file__).parents[1]
KITS = {spec.__name__.removesuffix("Spec") + "Conformance": spec.kind for spec in SPEC_TYPES.values()}


def plugins_under_test() -> Iterator[tuple[str, str]]:
    """(kind, name) of every test class that inherits from a kit."""
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef):
                continue
            kinds = {KITS[ast.unparse(base)] for base in node.bases if ast.unparse(base) in KITS}
            for statement in node.body:
                if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "name":
                    name = ast.literal_eval(statement.value).rpartition("/")[2]
                    yield from ((kind, name) for kind in kinds)


def test_every_bundled_plugin_is_tested_with_the_kit_of_its_kind() -> None:
    bundled = {
        (registered.spec.kind, registered.spec.name)
        for registered in installed().offers()
        if registered.source.startswith("flops-fit ")
    }
    without_data = {("dataset", "surface"), ("dataset", "external")}
    """Datasets without data, which a kit cannot test."""
    assert bundled - set(plugins_under_test()) == without_data


def test_there_is_a_kit_for_every_kind() -> None:
    import flops_fit_core.testing

    assert set(KITS.values()) == set(KINDS)
    assert set(KITS) == {name for name in flops_fit_core.testing.__all__ if name.endswith("Conformance")}
