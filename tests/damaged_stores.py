"""SQLite stores to damage: of a driver that has ended, and of drivers that were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from flops_fit_core import RunResult
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.sqlite import SqliteStore

COUNT = 20
RESULTS = [result_of(seed) for seed in range(COUNT)]
DATABASE, LOG, INDEX, BOUND = (f"results.sqlite{part}" for part in ("", "-wal", "-shm", ".count"))
_DRIVER = """
import os, sqlite3, sys
from pathlib import Path
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.sqlite import SqliteStore

path, count, merged = Path(sys.argv[1]) / "results.sqlite", int(sys.argv[2]), int(sys.argv[3])
store = SqliteStore(path, 10)
store.claim("run", "anna", 60)
for seed in range(merged):
    store.add(result_of(seed))
reader = sqlite3.connect(path, isolation_level=None)
reader.execute("BEGIN")
if merged < count:
    reader.execute("SELECT * FROM results").fetchall()  # a reader keeps the log from being merged
for seed in range(merged, count):
    store.add(result_of(seed))
print("added", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""


def store_at(folder: Path, lock_timeout: float = 5) -> SqliteStore:
    return SqliteStore(folder / DATABASE, lock_timeout)


def stored(folder: Path) -> list[RunResult]:
    """All results of a store, read in a fresh object. Compares the results of each run, too."""
    with closing(store_at(folder)) as store:
        results = store.all_attempts()
        for result in RESULTS:
            assert store.get(result.id) in (result, None)
        assert [store.get(result.id) for result in results] == results
        return results


def closed_store(folder: Path) -> Path:
    """A store with COUNT results that was closed."""
    with closing(store_at(folder)) as store:
        for result in RESULTS:
            store.add(result)
    return folder


def start_driver(folder: Path, merged: int = COUNT) -> subprocess.Popen[str]:
    """A process that has stored COUNT results, ``merged`` of them not in the log. It waits with the store open."""
    arguments = [sys.executable, "-c", _DRIVER, str(folder), str(COUNT), str(merged)]
    driver = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "added\n"
    return driver


def kill_driver(driver: subprocess.Popen[str]) -> None:
    driver.communicate("end\n")
    assert driver.returncode == -signal.SIGKILL


def killed_store(folder: Path, merged: int = COUNT) -> Path:
    """A store of a killed driver: COUNT results, all but ``merged`` of them in the log."""
    kill_driver(start_driver(folder, merged))
    assert ((folder / LOG).stat().st_size > 0) == (merged < COUNT)
    return folder


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def flip_bit_of_record(folder: Path, index: int) -> RunResult:
    """Change the loss in the stored record of a result, in the database file. Returns the result."""
    result = RESULTS[index]
    content = (folder / DATABASE).read_bytes()
    start = content.index(result.id.encode() + b"completed")  # in the table; the index has no status
    position = content.index(b'"loss":', start) + len('"loss":')
    flip_bit(folder / DATABASE, position)
    return result


def content_of(folder: Path) -> dict[str, bytes]:
    """The content of each file, without the index of the log, which has no content."""
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.endswith("-shm")]
    return {file.name: file.read_bytes() for file in files}


def without_write_access(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user who may read a folder and not write to it."""
    for path in [folder, *folder.iterdir()]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:  # root may write everywhere: become another user, who may read Python
        read_all = "+dac_read_search"
        user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        command = [*user, "--inh-caps", read_all, "--ambient-caps", read_all, *command]
    environment = {**os.environ, "HOME": "/tmp"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)
