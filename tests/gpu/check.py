"""Does training work on this GPU, and how fast: one table of numbers in at most eight minutes.

    python tests/gpu/check.py [--device cuda|cpu] [--rows precision,resume] [--seconds 460] [--quick] [--json FILE]

Works from a checkout, installed or not, as long as torch and the project's dependencies can be imported; pytest is
not needed. Each row is a process of its own with a time limit, so that a row that fails, hangs or breaks the GPU's
context leaves the others alone. Without a GPU, the rows that need none run on the CPU with smaller models, and the
others are marked. Rows are printed as they end; the errors of failed rows follow the table.

Exit code 0: every row that can run here is ok. 1: a row failed, or the time was up before it could run.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "RESULT "
"""Begins the line by which a row's process tells its result."""


@dataclass(frozen=True)
class Row:
    """One line of the table: which function of which module makes it."""

    module: str
    name: str
    seconds: int
    """Limit of its process; twice as long without a GPU."""
    title: str
    needs_gpu: bool = False


ROWS = (
    Row("correctness", "environment", 60, "machine"),
    Row("correctness", "precision", 60, "bfloat16 and float32 beside CPU float32"),
    Row("correctness", "fused", 40, "fused and unfused AdamW"),
    Row("memory", "forward", 60, "out of memory: forward and backward", needs_gpu=True),
    Row("memory", "first_step", 50, "out of memory: the optimizer's first step", needs_gpu=True),
    Row("memory", "evaluation", 50, "out of memory: evaluation", needs_gpu=True),
    Row("correctness", "resume", 60, "resume"),
    Row("correctness", "current_device", 40, "torch.cuda.set_device", needs_gpu=True),
    Row("correctness", "one_rank", 60, "one rank of NCCL or gloo, FSDP2"),
    Row("speed", "prefetch", 50, "prefetching", needs_gpu=True),
    Row("speed", "widths", 75, "memory and MFU by width"),
    Row("speed", "packing", 90, "packing"),
    Row("speed", "compiled", 120, "torch.compile"),
    Row("speed", "study", 180, "the README's study"),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a row."""

    row: str
    status: str
    """``ok``, ``FAILED`` or ``needs a GPU``."""
    seconds: float
    result: str
    details: str = ""
    """Of a failure: the traceback, and the end of what the process printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows and print the table. Returns the exit code."""
    given = _parse(arguments)
    if given.row:
        return _run_row(given.row, given.device, given.quick)
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(Path(folder))
        device = given.device or ("cuda" if _has_gpu(environment) else "cpu")
        rows = [_row(name) for name in given.rows.split(",")] if given.rows else ROWS
        outcomes = _run_rows(rows, device, environment, time.monotonic() + given.seconds, quick=given.quick)
    for outcome in outcomes:
        if outcome.details:
            print(f"\n--- {outcome.row}\n{outcome.details}")
    if given.json:
        Path(given.json).write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return int(any(outcome.status == "FAILED" for outcome in outcomes))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="by default cuda if torch sees a GPU")
    parser.add_argument("--rows", help=f"some of {','.join(row.name for row in ROWS)}")
    parser.add_argument("--seconds", type=float, default=460.0, help="limit of all rows together")
    parser.add_argument("--quick", action="store_true", help="shorter runs, for tests of this script")
    parser.add_argument("--json", help="a file for the rows as JSON")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _row(name: str) -> Row:
    for row in ROWS:
        if row.name == name:
            return row
    raise SystemExit(f"no row named {name!r}: choose from {', '.join(row.name for row in ROWS)}")


# ------------------------------------------------------------------ the driver's side


def _environment(folder: Path) -> dict[str, str]:
    """Of the rows' processes: the project is importable, and its plugins are found."""
    paths = [str(ROOT / "tests" / "gpu"), str(ROOT), str(ROOT / "plugins")]
    if not importlib.metadata.entry_points(group="flops_fit"):
        _write_metadata(folder)
        paths.append(str(folder))
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    # The workspace makes cuBLAS deterministic where deterministic algorithms are asked for.
    return {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }


def _write_metadata(folder: Path) -> None:
    """What an installation of this checkout would say of itself: plugins are found by their entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project.get("version", "0.1.0")
    info = folder / f"flops_fit-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: flops-fit\nVersion: {version}\n")
    points = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["flops_fit"].items())
    (info / "entry_points.txt").write_text(f"[flops_fit]\n{points}")


def _has_gpu(environment: dict[str, str]) -> bool:
    code = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 3)"
    return subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def _run_rows(
    rows: Sequence[Row], device: str, environment: dict[str, str], deadline: float, *, quick: bool
) -> list[Outcome]:
    width = max(len(row.title) for row in rows)
    print(f"{'row':{width}}  {'status':11}  {'s':>5}  result", flush=True)
    outcomes = []
    for row in rows:
        outcome = _outcome(row, device, environment, deadline - time.monotonic(), quick=quick)
        print(f"{row.title:{width}}  {outcome.status:11}  {outcome.seconds:5.1f}  {outcome.result}", flush=True)
        outcomes.append(outcome)
    return outcomes


def _outcome(row: Row, device: str, environment: dict[str, str], remaining: float, *, quick: bool) -> Outcome:
    if row.needs_gpu and device == "cpu":
        return Outcome(row.name, "needs a GPU", 0.0, "not run: device is cpu")
    limit = min(row.seconds * (2 if device == "cpu" else 1), remaining)
    if limit < 5:
        return Outcome(row.name, "FAILED", 0.0, "not run: the time of all rows was up")
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--row",
        f"{row.module}:{row.name}",
        "--device",
        device,
    ]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, *(["--quick"] if quick else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,  # so that all of its processes can be ended together
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _end(process)
        output, _ = process.communicate()
        details = "\n".join(output.splitlines()[-30:])
        return Outcome(row.name, "FAILED", time.monotonic() - began, f"not done after {limit:.0f} s", details)
    return _read(row, output, process.returncode, time.monotonic() - began)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a row's process, and those that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(row: Row, output: str, code: int, seconds: float) -> Outcome:
    lines = output.splitlines()
    told = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    rest = "\n".join(line for line in lines if not line.startswith(MARK))
    if not told:
        return Outcome(row.name, "FAILED", seconds, f"its process ended with code {code}", rest[-3000:])
    result = json.loads(told[-1])
    if result["error"] is None:
        return Outcome(row.name, "ok", seconds, result["result"])
    first = result["error"].strip().partition("\n")[0]
    return Outcome(row.name, "FAILED", seconds, first, f"{result['traceback']}\n{rest[-2000:]}")


# ------------------------------------------------------------------ a row's side


def _run_row(row: str, device: str, quick: bool) -> int:
    """Make one row, ``module:function``, in this process, and print what came of it."""
    module, _, name = row.partition(":")
    try:
        make: Callable[[str, bool], str] = getattr(importlib.import_module(module), name)
        told = {"result": make(device, quick), "error": None, "traceback": ""}
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        told = {"result": "", "error": f"{type(error).__name__}: {error}", "traceback": text[-4000:]}
    print(f"\n{MARK}{json.dumps(told)}", flush=True)
    return int(told["error"] is not None)


if __name__ == "__main__":
    sys.exit(main())
