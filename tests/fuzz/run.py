"""Read many damaged and random inputs, and report every crash.

::

    python tests/fuzz/run.py --inputs 1000000              all targets
    python tests/fuzz/run.py --target table.csv --seed 7   one target
    python tests/fuzz/run.py --target fit.json --atheris   guided by coverage: pip install atheris

Prints the number of inputs per target, and how many were accepted. Writes the smallest input of each crash to
``fuzz-crashes/``. Exit status 1 if there is a crash. Inputs are read in child processes: a library of C code may
end its process.
"""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FunctionType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from targets import Target, accepts_or_refuses, all_targets

BATCH = 5000
"""Inputs per hypothesis run: it keeps every input of a run in memory."""
SECONDS = 20
"""The longest time for one input."""
MEMORY = 8 * 2**30
"""The most address space of this process, in bytes."""


class Crashes:
    """The crashes by place, with the smallest input of each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.by_place: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()

    def add(self, target: Target, place: str, text: str, data: Any) -> None:
        self.counts[place] += 1
        if place not in self.by_place:
            print(f"CRASH {place}: {text[:200]}", flush=True)
        elif len(pickle.dumps(data)) >= len(pickle.dumps(self.by_place[place])):
            return
        self.by_place[place] = data
        self._folder.mkdir(exist_ok=True)
        name = "".join(sign if sign.isalnum() else "-" for sign in place)
        (self._folder / f"{name}.pickle").write_bytes(pickle.dumps((target.name, data)))


def hunt(target: Target, inputs: int, first_seed: int, crashes: Crashes) -> Counter[str]:
    """Read this many inputs of a target. Returns the number of inputs by outcome."""
    outcomes: Counter[str] = Counter()
    batch = 0
    while sum(outcomes.values()) < inputs:
        count = min(BATCH, inputs - sum(outcomes.values()))
        outcomes += hunt_in_child(target, count, first_seed + batch, crashes)
        batch += 1
    return outcomes


def hunt_in_child(target: Target, inputs: int, number: int, crashes: Crashes) -> Counter[str]:
    """Read inputs in a child process. An input that ends the child is a crash, and ends the batch."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        last, report = Path(folder, "last"), Path(folder, "report")
        if (child := os.fork()) == 0:
            outcomes, raised = read_batch(target, inputs, number, last)
            report.write_bytes(pickle.dumps((outcomes, raised)))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            outcomes, raised = pickle.loads(report.read_bytes())
        else:
            done, data = pickle.loads(last.read_bytes())
            place = f"{target.name}: the process ended with status {status}"
            outcomes, raised = Counter({"read": done, "crashed": 1}), [(place, "", data)]
    for place, text, data in raised:
        crashes.add(target, place, text, data)
    return outcomes


def read_batch(
    target: Target, inputs: int, number: int, last: Path
) -> tuple[Counter[str], list[tuple[str, str, Any]]]:
    """The number of inputs by outcome, and place, message and input of each crash.

    Writes the number of inputs so far, and the present input, to ``last``.
    """
    outcomes: Counter[str] = Counter()
    raised: list[tuple[str, str, Any]] = []

    def read(data: Any) -> None:
        last.write_bytes(pickle.dumps((outcomes.total(), data)))
        signal.alarm(SECONDS)
        try:
            outcomes["accepted" if accepts_or_refuses(target, data) else "refused"] += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            outcomes["crashed"] += 1
            raised.append((place_of(target, error), str(error), data))
        finally:
            signal.alarm(0)

    options = settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    seed(number)(options(given(target.inputs)(read)))()
    return outcomes, raised


def place_of(target: Target, error: BaseException) -> str:
    """The line of our code that raised an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if "flops_fit" in frame.filename), frames[-1])
    return f"{target.name}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno} {last.name}"


def hunt_by_coverage(target: Target, inputs: int, crashes: Crashes) -> None:
    """Let atheris choose the bytes. Ends the process."""
    import atheris

    def read(data: bytes) -> None:
        try:
            accepts_or_refuses(target, data)
        except Exception as error:
            crashes.add(target, place_of(target, error), str(error), data)

    for function in own_functions():
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], f"-runs={inputs}", f"-timeout={SECONDS}", "-rss_limit_mb=8000"], read)
    atheris.Fuzz()


def own_functions() -> list[FunctionType]:
    """The functions of flops-fit that are imported. To instrument those of all packages takes minutes."""
    modules = [(name, module) for name, module in sys.modules.items() if name.startswith("flops_fit")]
    return [
        value
        for name, module in modules
        for value in vars(module).values()
        if isinstance(value, FunctionType) and value.__module__ == name
    ]


def _stop_input(number: int, frame: Any) -> None:
    raise TimeoutError(f"the input takes longer than {SECONDS} seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="inputs in all; with --target, of this target")
    parser.add_argument("--target", help="only this target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; needs --target")
    arguments = parser.parse_args()
    targets = [target for target in all_targets() if arguments.target in (None, target.name)]
    if not targets:
        parser.error(f"no target {arguments.target!r}; targets: {', '.join(item.name for item in all_targets())}")
    if arguments.atheris and (arguments.target is None or "." not in arguments.target):
        parser.error("--atheris needs the --target of a file")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    crashes = Crashes(Path("fuzz-crashes").absolute())
    if arguments.atheris:
        hunt_by_coverage(targets[0], arguments.inputs, crashes)
    signal.signal(signal.SIGALRM, _stop_input)  # atheris has a limit of its library, with the same signal
    shares = sum(target.share for target in targets)
    total = 0
    for target in targets:
        started = time.monotonic()
        count = max(1, round(arguments.inputs * target.share / shares))
        outcomes = hunt(target, count, arguments.seed * 1_000_000, crashes)
        total += sum(outcomes.values())
        rate = count / (time.monotonic() - started)
        print(f"{target.name:28} {count:9,} inputs  {dict(outcomes)}  {rate:,.0f} per second", flush=True)
    print(f"{total:,} inputs, {sum(crashes.counts.values()):,} crashes in {len(crashes.counts)} places")
    return 1 if crashes.counts else 0


if __name__ == "__main__":
    sys.exit(main())
