"""Fixtures that tests of several subjects share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from installing import Site

from flops_fit_core.registry import installed

pytest_plugins = ["pytester"]

Failures = Callable[[str, dict[str, str], dict[str, dict[str, str]]], dict[str, set[str]]]

# A shell that starts pytest in the background lets it, and all that it starts, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An import path of this test's own; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    installed.cache_clear()
    yield Site(folder)
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin is not None and Path(origin).is_relative_to(tmp_path):
            del sys.modules[name]
    installed.cache_clear()


@pytest.fixture(autouse=True)
def _nothing_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the caller's environment disables is there for the tests."""
    monkeypatch.delenv("FLOPS_FIT_DISABLE", raising=False)


@pytest.fixture(scope="session")
def _imported_for_good() -> None:
    """What is imported while ``pytester`` is there is forgotten again, and these cannot be imported twice."""
    import numpy  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch  # noqa: F401


@pytest.fixture
def failures(_imported_for_good: None, pytester: pytest.Pytester) -> Failures:
    """Runs a kit on several plugins in a pytest of its own: for each, the names of the tests that failed."""

    def failures(template: str, sound: dict[str, str], cases: dict[str, dict[str, str]]) -> dict[str, set[str]]:
        files = {
            f"test_{number}": _filled(template, {**sound, **case}) for number, case in enumerate(cases.values())
        }
        pytester.makepyfile(**files)
        recorder = pytester.inline_run("-p", "no:cacheprovider", "-W", "error")
        found: dict[str, set[str]] = {name: set() for name in cases}
        ran = set()
        for report in recorder.getreports("pytest_runtest_logreport"):
            file, _, test = report.nodeid.partition("::")
            name = list(cases)[int(file.removeprefix("test_").removesuffix(".py"))]
            ran.add(name)
            if report.failed:
                found[name].add(test.partition("::")[2].partition("[")[0])
        assert ran == set(cases)
        return found

    return failures


def _filled(template: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(name, value)
    return template


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless ``-m`` says which ones to run."""
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
