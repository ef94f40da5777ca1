"""Programs of a user's own, for the trainer ``command``, and experiments that start them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def table(program: str | list, directory: Path, **changes) -> dict:
    """An experiment of one run of 100 steps, of numbers that are only declared."""
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
    """A program of these lines; the command that starts it."""
    (folder / "program.py").write_text(f"import json, os, pathlib, signal, sys, time\n{text}")
    return "{python} program.py"


def say(**result) -> str:
    return f"pathlib.Path(os.environ['FLOPS_FIT_RESULT']).write_text(json.dumps({result!r}))\n"


def flops_fit(folder: Path, *arguments: str, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from flops_fit_core.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, **more)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what, seconds: float = 30.0):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
    return found
