"""Fixtures that tests of several subjects share."""

from __future__ import annotations

import gc
import os
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from installing import Site

from flops_fit_core.plugins.registry import installed

pytest_plugins = ["pytester", "skipped_tests"]

Failures = Callable[[str, dict[str, str], dict[str, dict[str, str]]], dict[str, set[str]]]

# One thread per process, as in a sweep: with more threads than cores, a step of a tiny model takes many times as
# long. torch reads the variable when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Output is wrapped to COLUMNS. readline, which pytest imports, sets it for all child processes.
os.environ.pop("COLUMNS", None)
# A report takes half of the time of a small study. Tests that need one write --report.
os.environ["FLOPS_FIT_REPORT"] = "0"
# A shell that starts pytest in the background lets it, and all that it starts, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # nohup lets it ignore the end of the terminal
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
def _only_this_test_s_garbage() -> Iterator[None]:
    """A worker collects garbage after each job, a third of a second among all that tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _separate_user_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Consent that tests record, and read, is not that of the user who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("user-data")))
        yield


@pytest.fixture(autouse=True)
def _import_path_of_one_test() -> Iterator[None]:
    """A command adds the folder of its plugins to Python's path. In tests, many commands share a process."""
    path = list(sys.path)
    yield
    sys.path[:] = path


@pytest.fixture(autouse=True)
def _nothing_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the caller's environment disables is there for the tests."""
    monkeypatch.delenv("FLOPS_FIT_DISABLE", raising=False)


class _Reports:
    """A pytest plugin that collects the report of each test."""

    def __init__(self) -> None:
        self.reports: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)


_CAUGHT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``pytest tests/conformance -m "slow or not slow" -k caught --broken-plugins``."""
    text = "list the plugins that tests break on purpose, each with the checks of its kit that caught it"
    parser.addoption("--broken-plugins", action="store_true", help=text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the list for ``--broken-plugins``."""
    if config.getoption("--broken-plugins"):
        for line in config.stash.get(_CAUGHT, []):
            terminalreporter.write_line(line)


@pytest.fixture
def failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Failures:
    """Runs a conformance kit on several plugins in a separate pytest: the names of the failed tests by plugin.

    In this process, where everything that is large has been imported already; ``pytester`` would forget again what
    was imported meanwhile, and torch cannot be imported twice.
    """

    def failures(template: str, sound: dict[str, str], cases: dict[str, dict[str, str]]) -> dict[str, set[str]]:
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        once = uuid.uuid4().hex  # modules are kept by name
        for number, case in enumerate(cases.values()):
            (tmp_path / f"test_{once}_{number}.py").write_text(_filled(template, {**sound, **case}))
        monkeypatch.setenv("CI", "1")  # where an author's kit runs: pytest explains failures in full there
        reports = _Reports()
        options = ["--rootdir", str(tmp_path), "-c", str(tmp_path / "pytest.ini"), "--import-mode=importlib"]
        pytest.main([*options, "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)], plugins=[reports])
        failed: dict[str, set[str]] = {name: set() for name in cases}
        ran = set()
        for report in reports.reports:
            file, _, test = report.nodeid.partition("::")
            name = list(cases)[int(Path(file).stem.rpartition("_")[2])]
            ran.add(name)
            if report.failed:
                failed[name].add(test.partition("::")[2].partition("[")[0])
        assert ran == set(cases)
        caught = (
            f"{request.node.name}: {name}: {', '.join(sorted(tests))}" for name, tests in failed.items() if tests
        )
        request.config.stash.setdefault(_CAUGHT, []).extend(caught)
        return failed

    return failures


def _filled(template: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(name, value)
    return template


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless ``-m`` selects tests. Put the longest files first, so that none is the tail."""
    if not config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.parent.name != "torture", -sizes[item.path]))


@pytest.fixture
def call(capsys):
    """Runs a command line and returns its exit status, standard output and standard error."""
    from flops_fit_core.cli.main import run

    def run_command(*arguments):
        status = run([str(argument) for argument in arguments])
        output, error = capsys.readouterr()
        return status, output, error

    return run_command
