"""Measure the bundled stores: ``python tests/benchmarks/stores.py``.

For each store and number of results in it, prints the time to open it, read all results, add a result (median of
15, wall clock and CPU) and get a result. A result has ten evaluations, about 3 kB of JSON. A second table has the
costs of all adds to a new store, with fsync and ``close``: wall clock, CPU, bytes written (Linux), and the size of
the store. ``python tests/benchmarks/stores.py json 10000`` prints one line of the second table.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from flops_fit_core import Evaluation, RunResult
from flops_fit_core.plugins import ResultStore
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.sqlite import SqliteStore

CURVE = tuple(Evaluation(step=step, tokens=step * 1024, loss=5 - step / 50) for step in range(10))


def main() -> None:
    """Measure each store, from a hundred results to ten thousand."""
    print("store     results   open s  results() s   add ms  add CPU ms  get ms")
    for count in (100, 1_000, 10_000):
        for name in ("sqlite", "json"):
            with tempfile.TemporaryDirectory() as folder:
                measure(name, count, Path(folder))
    print("store        adds   wall s   CPU s  MB written  MB on disk")
    for count in (1_000, 10_000):
        for name in ("sqlite", "json"):
            measure_adds(name, count)


def measure_adds(name: str, count: int) -> None:
    """Add ``count`` results to a new store and print one line of the second table."""
    results = [result(seed) for seed in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        written, wall, cpu = bytes_written(), time.perf_counter(), time.process_time()
        store = open_store(name, Path(folder))
        for new in results:
            store.add(new)
        store.close()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        megabytes = (bytes_written() - written) / 1e6
        print(f"{name:<8} {count:>8} {wall:>8.1f} {cpu:>7.1f} {megabytes:>11.1f} {size / 1e6:>11.1f}", flush=True)


def bytes_written() -> int:
    """Bytes that this process has passed to write calls."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def measure(name: str, count: int, folder: Path) -> None:
    """Fill a store and print one line of the table."""
    fill(folder, name, count)
    start = time.perf_counter()
    store = open_store(name, folder)
    opened = time.perf_counter()
    results = store.results()
    read = time.perf_counter()
    if len(results) != count:
        raise RuntimeError(f"{name}: the store has {len(results)} of {count} results")
    times = [add(store, count + index) for index in range(15)]
    wall, cpu = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    ids = [result.id for result in results[:100]]
    started = time.perf_counter()
    for run_id in ids:
        store.get(run_id)
    get = (time.perf_counter() - started) / len(ids) * 1e3
    store.close()
    print(
        f"{name:<8} {count:>8} {opened - start:>8.3f} {read - opened:>12.3f} {wall:>8.1f} {cpu:>11.1f} {get:>7.2f}"
    )


def open_store(name: str, folder: Path) -> ResultStore:
    """A bundled store."""
    spec = installed().find("store", f"stores/{name}").spec
    store: ResultStore = spec.build(spec.options(), folder)
    return store


def result(seed: int) -> RunResult:
    """A result with ten evaluations."""
    return result_of(seed, curve=CURVE)


def fill(folder: Path, name: str, count: int) -> None:
    """Put ``count`` results into a new store without waiting for the disk after each."""
    store = open_store(name, folder)
    fsync = os.fsync
    os.fsync = lambda handle: None
    if isinstance(store, SqliteStore):
        store._file.writer.execute("PRAGMA synchronous = OFF")
    for seed in range(count):
        store.add(result(seed))
    store.close()
    os.fsync = fsync


def add(store: ResultStore, seed: int) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one ``add``."""
    new = result(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    store.add(new)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    if sys.argv[1:]:
        measure_adds(sys.argv[1], int(sys.argv[2]))
    else:
        main()
