"""Programs for the trainer ``command``, and experiments that start them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def table(program: str | list, directory: Path, **changes) -> dict:
    """An experiment with one run of 100 steps and a declared model."""
    trainer = {"name": "command", "command": program, "directory": str(directory), **changes.pop("trainer", {})}
    return {
        "name": "own",
        "sweep": {"budgets": [6 * 100 * 100 * 4 * 8], "sizes": [{"params": 100}], "batch_size": 4},
        "model": {"name": "declared", "arguments": {"depth": 3}},
        "dataset": {"name": "external", "label": "a walk", "vocab_size": 16, "context": 8, "bytes_per_token": 2.0},
        "optimizer": {"name": "adamw", "lr": 0.25},
        "trainer": trainer,
        "device": "cpu",
        **changes,
    }


def script(folder: Path, text: str) -> str:
    """Write a program with these lines. Returns the command that starts it."""
    (folder / "program.py").write_text(f"import json, os, pathlib, signal, sys, time\n{text}")
    return "{python} program.py"


def say(**result) -> str:
    return f"pathlib.Path(os.environ['FLOPS_FIT_RESULT']).write_text(json.dumps({result!r}))\n"


def flops_fit(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from flops_fit_core.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, **options)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(read_value, seconds: float = 30.0):
    """Wait until ``read_value()`` is true, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := read_value()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)
    return value
