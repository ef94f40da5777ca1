"""A stride of the harness: faults in real sweeps violate no invariant, and each invariant can fail.

``python -m tests.torture --full`` injects every fault. README.md explains the parts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from torture.shim import missing_requirement

ROOT = Path(__file__).parents[2]
MISSING = missing_requirement()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def torture(folder: Path, *words: str, stride: int) -> dict[str, Any]:
    """The summary of a call of the harness."""
    summary = folder / "summary.json"
    command = [sys.executable, "-m", "tests.torture", "--stride", str(stride), "--json", str(summary), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert summary.exists(), done.stdout + done.stderr
    return json.loads(summary.read_text())


def parts(*names: str) -> list[str]:
    return [word for name in names for word in ("--only", name)]


@pytest.fixture(scope="module")
def stride(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One call for several parts: importing everything takes seconds."""
    words = parts("broken", "calls", "power", "flips", "drivers", "clocks")
    return torture(tmp_path_factory.mktemp("torture"), *words, "--quick", stride=600)


def test_every_invariant_can_fail(stride: dict[str, Any]) -> None:
    assert [item for item in stride["violations"] if item["part"] == "broken"] == []
    assert injected(stride, "broken") >= 18


@pytest.mark.parametrize(
    ("part", "least"), [("calls", 8), ("power", 9), ("flips", 17), ("drivers", 2), ("clocks", 1)]
)
def test_faults_in_a_sweep_violate_no_invariant(stride: dict[str, Any], part: str, least: int) -> None:
    assert [item for item in stride["violations"] if item["part"].startswith(part)] == []
    assert injected(stride, part) >= least
    assert stride["acknowledged"] >= 100


def injected(summary: dict[str, Any], part: str) -> int:
    return sum(item["count"] for item in summary["injected"] if item["part"].startswith(part))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["calls", "power", "flips", "signals", "drivers", "clocks", "access"])
def test_more_faults_violate_no_invariant(tmp_path: Path, part: str) -> None:
    summary = torture(tmp_path, *parts(part), stride=20)
    assert summary["violations"] == []
    assert summary["total"] >= 10 or summary["skipped"]


@pytest.mark.slow
@pytest.mark.postgres
def test_faults_of_postgresql_violate_no_invariant(tmp_path: Path) -> None:
    from torture.postgres import missing_requirement as missing_server

    if (missing := missing_server()) is not None:
        pytest.skip(missing)
    summary = torture(tmp_path, *parts("postgres"), stride=10)
    assert summary["violations"] == []
    assert summary["total"] >= 9


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param("slurm", marks=pytest.mark.slurm), pytest.param("ray", marks=pytest.mark.ray)]
)
def test_faults_of_a_cluster_violate_no_invariant(tmp_path: Path, name: str) -> None:
    summary = torture(tmp_path, *parts("clusters"), "--scenario", name, stride=8)
    for reason in summary["skipped"].values():
        pytest.skip(reason)
    assert summary["violations"] == []
    assert summary["total"] >= 3
