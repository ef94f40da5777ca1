"""The SQLite store without the right to write to its folder, and on network file systems."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from damaged_stores import (
    COUNT,
    DATABASE,
    INDEX,
    LOG,
    RESULTS,
    closed_store,
    content_of,
    kill_driver,
    killed_store,
    start_driver,
    store_at,
    stored,
    without_write_access,
)
from sqlite_utils import Database

from flops_fit_core import StoreError
from flops_fit_core.api import run
from flops_fit_core.testing.examples import result_of
from flops_fit_stores import journal_mode, sqlite_reader
from flops_fit_stores.file_systems import file_system_type, is_network, type_in_mounts
from flops_fit_stores.records import COLUMNS
from flops_fit_stores.sqlite import to_row
from flops_fit_stores.sqlite_schema import MIGRATIONS, migrate

needs_setpriv = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root needs setpriv to give up its rights"
)
_READ = """
import sys
from pathlib import Path
from flops_fit_core import StoreError
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.sqlite import SqliteStore

store = SqliteStore(Path(sys.argv[1]) / "results.sqlite", 5)
expected = [result_of(seed) for seed in range(int(sys.argv[2]))]
assert store.all_attempts() == expected
try:
    store.add(result_of(99))
except StoreError as error:
    print(error)
store.close()
"""
SURFACE = {
    "name": "law",
    "model": "surface",
    "dataset": "surface",
    "executor": "local",
    "sweep": {"budgets": [1e17, 1e18], "sizes": 3},
}
FLOPS_FIT = [sys.executable, "-c", "from flops_fit_core.cli.main import main; main()"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can reach. pytest makes its folders private each time that it starts."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        for path in (Path(name), *Path(name).rglob("*")):
            if path.is_dir():
                path.chmod(0o755)


def read_as_another_user(folder: Path, count: int = COUNT) -> str:
    before = content_of(folder)
    done = without_write_access([sys.executable, "-c", _READ, str(folder), str(count)], folder)
    assert done.returncode == 0, done.stderr
    assert content_of(folder) == before
    return done.stdout


# ---------------------------------------------------------------------------- without write access


@needs_setpriv
def test_a_closed_store_is_read_and_the_error_of_an_add_names_the_folder(folder: Path) -> None:
    closed_store(folder)
    message = read_as_another_user(folder)
    assert f"{folder}: cannot write: it is read-only for this user. Its results can be read" in message
    assert not (folder / LOG).exists()


@needs_setpriv
@pytest.mark.parametrize("with_index", [True, False])
def test_the_log_of_a_killed_driver_is_read(with_index: bool, folder: Path) -> None:
    killed_store(folder, merged=5)
    if not with_index:
        (folder / INDEX).unlink()
    read_as_another_user(folder)
    assert (folder / INDEX).exists() == with_index


@needs_setpriv
@pytest.mark.parametrize("merged", [5, COUNT])
def test_the_store_of_a_driver_that_runs_is_read(merged: int, folder: Path) -> None:
    driver = start_driver(folder, merged)
    try:
        read_as_another_user(folder)
    finally:
        kill_driver(driver)


@needs_setpriv
def test_a_folder_without_results_is_read(folder: Path) -> None:
    read_as_another_user(folder, count=0)
    assert list(folder.iterdir()) == []


@needs_setpriv
@pytest.mark.parametrize("store", ["sqlite", "json"])
def test_commands_that_read_work_on_a_study_of_another_user(store: str, folder: Path) -> None:
    study = folder / "law"
    run({**SURFACE, "store": store}, out=study)
    for path in study.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = content_of(study) if not (study / "report").exists() else None
    for command in ("runs", "status", "fit", "store check"):
        done = without_write_access([*FLOPS_FIT, *command.split(), str(study)], study)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    done = without_write_access([*FLOPS_FIT, "run", str(study), "--set", "sweep.sizes=4"], study)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "write" in done.stderr
    assert before is None or content_of(study) == before


@needs_setpriv
@pytest.mark.parametrize(("store", "new"), [("sqlite", "json"), ("json", "sqlite")])
def test_a_study_of_another_user_is_copied(store: str, new: str, folder: Path) -> None:
    study, target = folder / "law", folder / "target"
    run({**SURFACE, "store": store}, out=study)
    before = content_of(study)
    target.mkdir()
    target.chmod(0o777)
    copy = [*FLOPS_FIT, "store", "copy", str(study), str(target / "copy"), "--store", new]
    done = without_write_access(copy, study)
    assert done.returncode == 0, done.stderr
    assert "6 attempts at 6 runs are equal" in done.stdout
    assert content_of(study) == before


# ---------------------------------------------------------------------------- reading changes nothing


@pytest.mark.parametrize("merged", [5, COUNT])
def test_reading_changes_no_file_of_a_killed_driver(merged: int, tmp_path: Path) -> None:
    killed_store(tmp_path, merged)
    names, before = sorted(path.name for path in tmp_path.iterdir()), content_of(tmp_path)
    assert stored(tmp_path) == RESULTS
    assert content_of(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_reading_creates_no_file(tmp_path: Path) -> None:
    with closing(store_at(tmp_path / "new")) as store:
        assert store.results() == []
    assert not (tmp_path / "new").exists()
    closed_store(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    with closing(store_at(tmp_path)) as store:
        assert store.results() == RESULTS
        assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_an_open_store_reads_the_results_of_a_driver_that_started_later(tmp_path: Path) -> None:
    with closing(store_at(tmp_path)) as store:
        assert store.results() == []
        with closing(store_at(tmp_path)) as driver:
            driver.add(RESULTS[0])
            assert store.results() == RESULTS[:1]
        assert store.results() == RESULTS[:1]
        with closing(store_at(tmp_path)) as driver:
            driver.add(RESULTS[1])
            assert store.results() == RESULTS[:2]
            driver.add(RESULTS[2])
            assert store.results() == RESULTS[:3]


# ---------------------------------------------------------------------------- older schemas


def as_schema_version_1(folder: Path) -> Path:
    """A store as flops-fit wrote it before claims had tokens and rows had checksums."""
    names = [name for name in COLUMNS if name != "superseded"]
    add = f"INSERT INTO results ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        migrate(Database(connection), MIGRATIONS[:1])
        connection.executemany(add, map(to_row, RESULTS))
        connection.execute("PRAGMA journal_mode = WAL")
    return folder


def test_a_store_without_checksums_is_read_and_gets_them_with_the_next_result(tmp_path: Path) -> None:
    as_schema_version_1(tmp_path)
    before = content_of(tmp_path)
    assert stored(tmp_path) == RESULTS
    assert content_of(tmp_path) == before
    with closing(store_at(tmp_path)) as store:
        store.add(result_of(COUNT))
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        (without,) = connection.execute("SELECT COUNT(*) FROM results WHERE sha256 IS NULL").fetchone()
    assert without == 0
    assert stored(tmp_path) == [*RESULTS, result_of(COUNT)]


def test_a_row_without_a_checksum_must_name_its_run(tmp_path: Path) -> None:
    as_schema_version_1(tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as connection:
        connection.execute(f"UPDATE results SET id = '{result_of(99).id}' WHERE added = 3")
    with pytest.raises(StoreError, match=f"run {result_of(99).id}, attempt 1: the stored result is not intact"):
        store_at(tmp_path)


# ---------------------------------------------------------------------------- network file systems

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
36 27 0:30 / /home rw,nosuid shared:7 - nfs4 server:/home rw,vers=4.2,addr=10.0.0.1
37 36 8:1 / /home/anna/local\040disk rw - xfs /dev/sda1 rw
38 27 0:31 / /mnt/lab rw - cifs //server/lab rw
39 27 0:32 / /mnt/sshfs rw master:3 propagate_from:2 - fuse.sshfs anna@host: rw,user_id=0
40 27 0:33 / /scratch rw - lustre mgs@tcp:/scratch rw,flock
41 27 0:34 / /windows rw - 9p drvfs rw
42 27 0:35 / /over rw - overlay overlay rw,lowerdir=/a,upperdir=/b
43 27 8:2 / /usb rw - fuseblk /dev/sdb1 rw
44 27 0:36 / /twice rw - nfs server:/old rw
45 44 8:3 / /twice rw - btrfs /dev/sdc1 rw
a line that is damaged
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/srv/study", "ext4"),
        ("/home/anna/study", "nfs4"),
        ("/home2/study", "ext4"),
        ("/home", "nfs4"),
        ("/home/anna/local disk/study", "xfs"),
        ("/mnt/lab/a/b", "cifs"),
        ("/mnt/sshfs/a", "fuse.sshfs"),
        ("/scratch/anna", "lustre"),
        ("/windows/c", "9p"),
        ("/over/lay", "overlay"),
        ("/usb/study", "fuseblk"),
        ("/twice/study", "btrfs"),
    ],
)
def test_the_file_system_of_the_longest_mount_point_counts(folder: str, kind: str) -> None:
    assert type_in_mounts(Path(folder), MOUNTS) == kind


def test_file_systems_that_machines_share_are_network_file_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(kind: str) -> bool:
        monkeypatch.setattr("flops_fit_stores.file_systems.file_system_type", lambda folder: kind)
        return is_network(Path("study"))

    shared = (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "fuse.sshfs",
        "fuse.s3fs",
        "9p",
        "lustre",
        "gpfs",
        "beegfs",
        "afs",
        "ceph",
    )
    assert all(network(kind) for kind in shared)
    assert not any(
        network(kind) for kind in ("ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "apfs", "")
    )


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="only Linux lists mounts in /proc")
def test_this_machine_knows_its_file_systems() -> None:
    assert file_system_type(Path("/proc/self")) == "proc"
    assert file_system_type(Path.cwd() / "does" / "not" / "exist") not in ("", "proc")


@pytest.fixture
def on_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (journal_mode, sqlite_reader):
        monkeypatch.setattr(module, "is_network", lambda folder: True)


def mode_of(folder: Path) -> str:
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


@pytest.mark.usefixtures("on_network")
def test_a_network_file_system_gets_a_rollback_journal_and_no_log(tmp_path: Path) -> None:
    with closing(store_at(tmp_path)) as store, closing(store_at(tmp_path)) as other:
        for result in RESULTS:
            assert store.claim(result.id, "anna", 60)
            assert not other.claim(result.id, "bert", 60)
            store.add(result)
            assert not (tmp_path / LOG).exists()
            assert other.get(result.id) == result
        extra = 3
        assert store._file.writer.execute("PRAGMA synchronous").fetchone() == (extra,)
    assert mode_of(tmp_path) == "delete"
    assert stored(tmp_path) == RESULTS


@pytest.mark.parametrize("merged", [5, COUNT])
def test_a_log_is_removed_on_a_network_file_system(
    merged: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    killed_store(tmp_path, merged)
    request.getfixturevalue("on_network")
    assert stored(tmp_path) == RESULTS
    with closing(store_at(tmp_path)) as store:
        store.add(result_of(COUNT))
    assert mode_of(tmp_path) == "delete"
    assert not (tmp_path / LOG).exists()
    assert stored(tmp_path) == [*RESULTS, result_of(COUNT)]


def test_a_log_that_another_process_uses_is_not_removed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    driver = start_driver(tmp_path)
    try:
        request.getfixturevalue("on_network")
        with closing(store_at(tmp_path, lock_timeout=0.2)) as store:
            assert store.results() == RESULTS
            with pytest.raises(StoreError, match="write-ahead log, and another process has it open"):
                store.add(result_of(COUNT))
    finally:
        kill_driver(driver)
    assert stored(tmp_path) == RESULTS


def test_a_local_disk_gets_a_log_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(journal_mode, "is_network", lambda folder: True)
        closed_store(tmp_path)
    with closing(store_at(tmp_path)) as store:
        store.add(result_of(COUNT))
        assert (tmp_path / LOG).exists()
    assert mode_of(tmp_path) == "wal"
