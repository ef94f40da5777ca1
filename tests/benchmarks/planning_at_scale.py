"""Planning budgets 1e18 to 1e24 with the gpt family, in a fresh process: CPU time, wall time, memory.

    python tests/benchmarks/planning_at_scale.py [--context 64]

The example's experiment (docs/examples/text-gpt.toml) at 13 budgets, with repeat = true, since no disk's
standard library has the tokens. Held to: under 5 s and 500 MB. CPU time is of all threads.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "docs/examples/text-gpt.toml"
BUDGETS = [1e18, 3e18, 1e19, 3e19, 1e20, 3e20, 1e21, 3e21, 1e22, 3e22, 1e23, 3e23, 1e24]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=64)
    context = parser.parse_args().context
    start = "from flops_fit_core.cli import main; main()"
    command = [sys.executable, "-c", start, "plan", str(EXAMPLE), "--no-estimate"]
    for setting in (
        f"sweep.budgets={BUDGETS}",
        "sweep.allow_repeat=true",
        "sweep.tokens_per_param=20",
        f"dataset.context={context}",
    ):
        command += ["--set", setting]
    started = time.perf_counter()
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("\n".join(said.stdout.rstrip().splitlines()[-3:]))
    print(
        f"CPU {used.ru_utime + used.ru_stime:.2f} s, wall {wall:.2f} s, peak memory {used.ru_maxrss / 1024:.0f} MB"
    )


if __name__ == "__main__":
    main()
