"""A pytest plugin that compares the skips of a session with a written list, ``tests/allowed_skips.txt``.

A skip that is not on the list is printed. With ``FLOPS_FIT_SKIPS=strict`` in the environment, it also makes pytest
fail: ``.ci/run`` sets this, because a broken installation must not turn tests off unnoticed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest

LIST = Path("tests") / "allowed_skips.txt"
STRICT = "FLOPS_FIT_SKIPS"


def read_allowed_skips(path: Path) -> list[tuple[str, re.Pattern[str]]]:
    """The files that may skip, each with a pattern of the reason. A line is ``FILE: REGULAR EXPRESSION``."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = (line.partition(": ") for line in lines if line and not line.startswith("#"))
    return [(file, re.compile(pattern)) for file, _, pattern in entries]


class SkipReport:
    """The skips of a session that are not on the list, as ``FILE: reason``, with how often each occurred."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.allowed = read_allowed_skips(root / LIST)
        self.unlisted: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.check(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that skips as a whole."""
        self.check(report)

    def check(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        path, _, message = report.longrepr  # type: ignore[misc]
        file = os.path.relpath(path, self.root)
        reason = message.removeprefix("Skipped: ")
        if not any(file == name and pattern.fullmatch(reason) for name, pattern in self.allowed):
            self.unlisted[f"{file}: {reason}"] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unlisted:
            terminalreporter.section(f"skips that are not in {LIST}")
            for skip, count in sorted(self.unlisted.items()):
                terminalreporter.write_line(f"{count} x {skip}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted and os.environ.get(STRICT) == "strict" and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    """Register the report once: in the process that prints the summary, not in workers of pytest-xdist."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipReport(config.rootpath), "skip-report")
