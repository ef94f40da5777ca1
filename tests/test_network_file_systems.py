"""Recognise network file systems, and use the SQLite store there without a write-ahead log."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from damaged_stores import (
    COUNT,
    DATABASE,
    LOG,
    RESULTS,
    closed_store,
    kill_driver,
    killed_store,
    start_driver,
    store_at,
    stored,
)

from flops_fit_core import StoreError
from flops_fit_core.testing.examples import result_of
from flops_fit_stores import journal_mode, sqlite_reader
from flops_fit_stores.file_systems import file_system_type, is_network, type_in_mounts

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
