"""Inject faults into real sweeps.

    python -m tests.torture                       a stride of every part, about ten minutes
    python -m tests.torture --full                every fault, some hours
    python -m tests.torture --only flips --seed 3 --stride 5

Prints the injected faults by kind and every violation, and writes them to a JSON file. Exit status 1 if an
invariant was violated.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PARTS = {
    "broken": "broken",
    "calls": "system_calls",
    "power": "power_loss",
    "flips": "flips",
    "signals": "signals",
    "drivers": "drivers",
    "clocks": "clocks",
    "access": "access",
    "postgres": "postgres",
    "clusters": "clusters",
}
"""Name of a part -> its module."""
DEFAULT_STRIDE = 20
SUMMARY = Path(tempfile.gettempdir()) / "torture.json"


def main() -> int:
    """Restart with the shim preloaded, run the parts, print the table."""
    arguments = parse()
    sys.path.insert(0, str(TESTS))
    if "TORTURE_BASE" not in os.environ:
        restart(arguments.folder)
    # Remove the folders of trials, and their processes, also if this process is stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"stopped by signal {number}"))
    try:
        return run_parts(arguments)
    finally:
        shutil.rmtree(os.environ["TORTURE_BASE"], ignore_errors=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; repeatable")
    parser.add_argument("--scenario", default="", help="only scenarios with this text in their name")
    parser.add_argument("--full", action="store_true", help="every fault: a stride of 1")
    parser.add_argument("--stride", type=int, default=DEFAULT_STRIDE, help="every n-th fault")
    parser.add_argument("--seed", type=int, default=0, help="shifts strides and random moments")
    parser.add_argument("--json", type=Path, default=SUMMARY, help=f"file of the summary; default {SUMMARY}")
    parser.add_argument("--folder", type=Path, help="folder of the trials; by default in /dev/shm or /tmp")
    parser.add_argument("--verbose", action="store_true", help="print every fault and its time")
    parser.add_argument("--quick", action="store_true", help="leave out scenarios with worker processes")
    parser.add_argument("--keep", action="store_true", help="keep the folders of trials with violations")
    return parser.parse_args()


def restart(folder: Path | None) -> None:
    """Start this program again, with the shim and one thread. Does not return."""
    from torture import shim

    if (missing := shim.missing_requirement()) is not None:
        sys.exit(f"error: {missing}")
    memory = Path("/dev/shm")
    parent = folder or (memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir()))
    base = Path(tempfile.mkdtemp(prefix="torture-", dir=parent))
    base.chmod(0o755)
    preloaded = ":".join(filter(None, [str(shim.build(base)), os.environ.get("LD_PRELOAD", "")]))
    python_path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    os.environ.update(
        TORTURE_BASE=str(base),
        LD_PRELOAD=preloaded,
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        PYTHONPATH=python_path,
    )
    os.execv(sys.executable, [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]])


def run_parts(arguments: argparse.Namespace) -> int:
    from torture import zygote
    from torture.session import Session

    stride = 1 if arguments.full else arguments.stride
    session = Session(
        arguments.seed, stride, arguments.scenario, arguments.verbose, arguments.quick, arguments.keep
    )
    zygote.warm_up()
    for name in arguments.only or PARTS:
        with session.timed(name):
            importlib.import_module(f"torture.{PARTS[name]}").run(session)
    print(session.tally.table())
    settings = {"parts": list(arguments.only or PARTS), "seed": arguments.seed, "stride": stride}
    session.tally.save(arguments.json, settings)
    print(f"{session.tally.acknowledged} acknowledged results compared; summary: {arguments.json}")
    return 1 if session.tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
