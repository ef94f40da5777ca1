"""``tests/gpu/check.py`` without a GPU: its table, its isolation, and some of its rows on the CPU."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "gpu" / "check.py"


@pytest.fixture
def check(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_every_row_has_a_documented_function(check):
    for row in check.ROWS:
        function = getattr(importlib.import_module(row.module), row.name)
        assert function.__doc__, row


def test_rows_run_on_the_cpu_unless_they_need_a_gpu(tmp_path):
    rows = "environment,fused,forward,current_device"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--rows", rows]
    process = subprocess.run(
        [*command, "--json", str(tmp_path / "rows.json")], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    outcomes = json.loads((tmp_path / "rows.json").read_text())
    assert [(outcome["row"], outcome["status"]) for outcome in outcomes] == [
        ("environment", "ok"),
        ("fused", "ok"),
        ("forward", "needs a GPU"),
        ("current_device", "needs a GPU"),
    ]
    assert "CPU only" in process.stdout
    assert len(process.stdout.splitlines()) == 5, "one line per row and the heading"


BROKEN = """
import os, time

def raises(device, quick):
    raise ValueError("broken: " + device)

def exits(device, quick):
    print("the last words", flush=True)
    os._exit(3)

def hangs(device, quick):
    time.sleep(600)

def works(device, quick):
    print("noise")
    return f"quick: {quick}"
"""


def test_a_row_that_fails_exits_or_hangs_does_not_affect_other_rows(check, tmp_path, capsys):
    (tmp_path / "broken_rows.py").write_text(BROKEN)
    environment = {**check._environment(tmp_path), "PYTHONPATH": str(tmp_path)}
    rows = [check.Row("broken_rows", name, 3, name) for name in ("raises", "exits", "hangs", "works")]
    raised, ended, hung, worked = check._run_rows(rows, "cpu", environment, time.monotonic() + 60, quick=True)
    assert (raised.status, raised.result) == ("FAILED", "ValueError: broken: cpu")
    assert 'raise ValueError("broken: " + device)' in raised.details
    assert (ended.status, ended.result) == ("FAILED", "its process ended with code 3")
    assert "the last words" in ended.details
    assert (hung.status, hung.result) == ("FAILED", "not finished after 6 s")
    assert (worked.status, worked.result) == ("ok", "quick: True")
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_row_fails_if_no_time_remains_for_it(check, tmp_path, capsys):
    (outcome,) = check._run_rows(
        [check.ROWS[0]], "cpu", check._environment(tmp_path), time.monotonic() + 1, quick=True
    )
    assert (outcome.status, outcome.result) == ("FAILED", "not run: the time limit of all rows was reached")


def test_a_checkout_without_installation_has_its_plugins(check, tmp_path):
    check._write_metadata(tmp_path)
    (info,) = tmp_path.iterdir()
    distribution = importlib.metadata.Distribution.at(info)
    points = {point.name: point.value for point in distribution.entry_points if point.group == "flops_fit"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert points == project["entry-points"]["flops_fit"]
    assert distribution.metadata["Name"] == "flops-fit"
