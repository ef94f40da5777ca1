"""Measure the bundled stores: ``python tests/benchmarks/stores.py``.

For each store and number of results in it, prints the time to open it, read all results, add a result (median of
15, wall clock and CPU) and get a result. A result has ten evaluations, about 3 kB of JSON.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from flops_fit_core import Evaluation, RunResult
from flops_fit_core.plugins import ResultStore
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.json_file import JsonStore, _entry
from flops_fit_stores.sqlite import SqliteStore

CURVE = tuple(Evaluation(step=step, tokens=step * 1024, loss=5 - step / 50) for step in range(10))


def main() -> None:
    """Measure each store, from a hundred results to ten thousand."""
    print("store     results   open s  results() s   add ms  add CPU ms  get ms")
    for count in (100, 1_000, 10_000):
        for name in ("sqlite", "json"):
            with tempfile.TemporaryDirectory() as folder:
                measure(name, count, Path(folder))


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
    if isinstance(store, JsonStore):
        store._file.change(
            lambda data: data["results"].extend(_entry(result(seed)) for seed in range(count)) is None
        )
    else:
        fsync = os.fsync
        os.fsync = lambda handle: None
        if isinstance(store, SqliteStore):
            store._db.execute("PRAGMA synchronous = OFF")
        for seed in range(count):
            store.add(result(seed))
        os.fsync = fsync
    store.close()


def add(store: ResultStore, seed: int) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one ``add``."""
    new = result(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    store.add(new)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
