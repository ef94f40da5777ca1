"""Skips are compared with a written list, and fail a strict session if they are not on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from skipped_tests import LIST, STRICT, read_allowed_skips

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

def test_listed():
    pytest.skip("no tape drive")

@pytest.mark.skipif(True, reason="no punch cards")
def test_unlisted():
    pass

@pytest.mark.xfail(reason="expected")
def test_known_failure():
    assert False
"""
SKIPPED_FILE = """
import pytest

pytest.importorskip("no_package", reason="no package")
"""


def run_pytest(folder: Path, allowed: str, *options: str, strict: bool) -> subprocess.CompletedProcess[str]:
    """A pytest session of the tests above, in a project with a list of its allowed skips."""
    (folder / "tests").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / LIST).write_text(allowed)
    (folder / "tests" / "test_skips.py").write_text(TESTS)
    (folder / "tests" / "test_file.py").write_text(SKIPPED_FILE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    environment.pop(STRICT, None)
    if strict:
        environment[STRICT] = "strict"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "skipped_tests", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "with workers"])
def test_a_skip_that_is_not_on_the_list_fails_a_strict_session(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = run_pytest(tmp_path, "# drives\ntests/test_skips.py: no tape .*\n", *options, strict=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 x tests/test_skips.py: no punch cards" in done.stdout
    assert "1 x tests/test_file.py: no package" in done.stdout
    assert "tape" not in done.stdout


def test_a_skip_that_is_not_on_the_list_is_only_printed_otherwise(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "", strict=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 x tests/test_skips.py: no punch cards" in done.stdout


def test_a_strict_session_passes_if_every_skip_is_on_the_list(tmp_path: Path) -> None:
    allowed = "tests/test_skips.py: no (tape drive|punch cards)\ntests/test_file.py: no package\n"
    done = run_pytest(tmp_path, allowed, strict=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not in" not in done.stdout


def test_a_pattern_must_match_the_complete_reason(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "tests/test_skips.py: no\ntests/test_file.py: no package\n", strict=True)
    assert done.returncode == 1
    assert "1 x tests/test_skips.py: no tape drive" in done.stdout


def test_every_file_on_the_list_exists() -> None:
    allowed = read_allowed_skips(ROOT / LIST)
    assert allowed
    assert [file for file, _ in allowed if not (ROOT / file).is_file()] == []


def test_ci_runs_a_strict_session() -> None:
    assert f"\nexport {STRICT}=strict" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
