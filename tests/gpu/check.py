"""Check training on this GPU and measure its speed: one table of numbers in at most eight minutes.

    python tests/gpu/check.py [--device cuda|cpu] [--rows precision,resume] [--seconds 460] [--quick] [--json FILE]

Works from a checkout, installed or not, if torch and the project's dependencies can be imported. pytest is not
needed. Each row is a separate process with a time limit, so a row that fails, hangs or breaks the GPU's context
does not affect other rows. Without a GPU, rows that do not need one run on the CPU with smaller models, and the
others are marked. Rows are printed as they end. The errors of failed rows follow the table.

Exit code 0: every row that can run here is ok. 1: a row failed, or the time limit was reached before it could run.
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
"""Prefix of the line on which a row's process prints its result."""


@dataclass(frozen=True)
class Row:
    """One line of the table, and the function that computes it."""

    module: str
    name: str
    seconds: int
    """Time limit of its process; doubled without a GPU."""
    title: str
    needs_gpu: bool = False


ROWS = (
    Row("correctness", "environment", 60, "machine"),
    Row("correctness", "precision", 60, "bfloat16 and float32 against CPU float32"),
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
    """The result of a row."""

    row: str
    status: str
    """``ok``, ``FAILED`` or ``needs a GPU``."""
    seconds: float
    result: str
    details: str = ""
    """For a failure: the traceback and the end of the process's output."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows and print the table. Returns the exit code."""
    options = _parse(arguments)
    if options.row:
        return _run_row(options.row, options.device, options.quick)
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(Path(folder))
        device = options.device or ("cuda" if _has_gpu(environment) else "cpu")
        rows = [_find_row(name) for name in options.rows.split(",")] if options.rows else ROWS
        outcomes = _run_rows(rows, device, environment, time.monotonic() + options.seconds, quick=options.quick)
    for outcome in outcomes:
        if outcome.details:
            print(f"\n--- {outcome.row}\n{outcome.details}")
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return int(any(outcome.status == "FAILED" for outcome in outcomes))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if torch detects a GPU")
    parser.add_argument("--rows", help=f"comma-separated, from {','.join(row.name for row in ROWS)}")
    parser.add_argument("--seconds", type=float, default=460.0, help="time limit for all rows")
    parser.add_argument("--quick", action="store_true", help="use shorter runs, to test this script")
    parser.add_argument("--json", help="write the rows to this JSON file")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _find_row(name: str) -> Row:
    for row in ROWS:
        if row.name == name:
            return row
    raise SystemExit(f"no row named {name!r}: choose from {', '.join(row.name for row in ROWS)}")


# ------------------------------------------------------------------ main process


def _environment(folder: Path) -> dict[str, str]:
    """Environment of the rows' processes, in which the project and its plugins can be imported."""
    paths = [str(ROOT / "tests" / "gpu"), str(ROOT), str(ROOT / "plugins")]
    if not importlib.metadata.entry_points(group="flops_fit"):
        _write_metadata(folder)
        paths.append(str(folder))
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    # cuBLAS needs this workspace setting for deterministic algorithms.
    return {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }


def _write_metadata(folder: Path) -> None:
    """Write the metadata of an installed flops-fit: plugins are discovered by their entry points."""
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
        outcome = _run_in_process(row, device, environment, deadline - time.monotonic(), quick=quick)
        print(f"{row.title:{width}}  {outcome.status:11}  {outcome.seconds:5.1f}  {outcome.result}", flush=True)
        outcomes.append(outcome)
    return outcomes


def _run_in_process(
    row: Row, device: str, environment: dict[str, str], remaining: float, *, quick: bool
) -> Outcome:
    if row.needs_gpu and device == "cpu":
        return Outcome(row.name, "needs a GPU", 0.0, "not run: device is cpu")
    limit = min(row.seconds * (2 if device == "cpu" else 1), remaining)
    if limit < 5:
        return Outcome(row.name, "FAILED", 0.0, "not run: the time limit of all rows was reached")
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--row",
        f"{row.module}:{row.name}",
        "--device",
        device,
    ]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, *(["--quick"] if quick else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,  # a process group, so that all processes of the row can be killed
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _kill(process)
        output, _ = process.communicate()
        details = "\n".join(output.splitlines()[-30:])
        return Outcome(
            row.name, "FAILED", time.monotonic() - started, f"not finished after {limit:.0f} s", details
        )
    return _parse_outcome(row, output, process.returncode, time.monotonic() - started)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a row's process and its child processes."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _parse_outcome(row: Row, output: str, code: int, seconds: float) -> Outcome:
    lines = output.splitlines()
    results = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    rest = "\n".join(line for line in lines if not line.startswith(MARK))
    if not results:
        return Outcome(row.name, "FAILED", seconds, f"its process ended with code {code}", rest[-3000:])
    result = json.loads(results[-1])
    if result["error"] is None:
        return Outcome(row.name, "ok", seconds, result["result"])
    first = result["error"].strip().partition("\n")[0]
    return Outcome(row.name, "FAILED", seconds, first, f"{result['traceback']}\n{rest[-2000:]}")


# ------------------------------------------------------------------ row process


def _run_row(row: str, device: str, quick: bool) -> int:
    """Compute one row, ``module:function``, in this process, and print the result as JSON."""
    module, _, name = row.partition(":")
    try:
        compute: Callable[[str, bool], str] = getattr(importlib.import_module(module), name)
        result = {"result": compute(device, quick), "error": None, "traceback": ""}
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        result = {"result": "", "error": f"{type(error).__name__}: {error}", "traceback": text[-4000:]}
    print(f"\n{MARK}{json.dumps(result)}", flush=True)
    return int(result["error"] is not None)


if __name__ == "__main__":
    sys.exit(main())
