"""Claims are renewed while a driver is busy, and drivers are found by process and beat, never by the clock."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sweep_setting import Setting

from flops_fit_core import RunResult, StoreError
from flops_fit_core.api import plan
from flops_fit_core.plugins import Executor, JobEnded, Logger
from flops_fit_core.study import heartbeat
from flops_fit_core.study import sweep as sweep_module
from flops_fit_core.study.heartbeat import (
    Driver,
    Heartbeat,
    drivers,
    live_drivers,
    remove_dead_drivers,
    this_machine,
)
from flops_fit_core.study.results import StudyResults
from flops_fit_core.study.settings import StudySettings
from flops_fit_core.study.sweep import Sweep

LEASE = 1.0
SURFACE = {"name": "law", "sweep": {"budgets": [1e17, 1e18], "sizes": 2}, "model": "surface", "dataset": "surface"}


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "LEASE_SECONDS", LEASE)
    setting = Setting(tmp_path, sizes=(4,))
    setting.store().close()
    return setting


class Waits(Executor):
    """Gives no event for four leases."""

    alive = True

    def __init__(self):
        self.jobs = []

    def submit(self, job):
        self.jobs.append(job)

    def events(self, timeout):
        while self.jobs:
            self.wait()
            job = self.jobs.pop()
            yield from (RunResult(run=run, status="diverged") for run in job.runs)
            yield JobEnded(job.id)

    def wait(self):
        time.sleep(4 * LEASE)

    def is_alive(self, job_id):
        return self.alive

    def cancel(self, job_id):
        pass


def steal(setting, kind, name, seconds):
    """Claim a run again and again as another driver does. Returns the number of claims that succeeded."""
    store, stolen = setting.store(kind), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stolen += bool(store.claim(name, "another driver", 0.3))
        time.sleep(0.05)
    store.close()
    return stolen


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "claim-renewal"]


def open_files(folder):
    paths = [file.resolve() for file in Path("/proc/self/fd").iterdir()]
    return [path for path in paths if path.is_relative_to(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_no_claim_expires_while_the_executor_gives_no_event(setting, kind):
    stolen = []
    executor = Waits()
    executor.wait = lambda: stolen.append(steal(setting, kind, setting.plan.runs[0].id, 4 * LEASE))
    store = setting.store(kind)
    Sweep(setting.plan, store, executor, setting.registry, open_store=lambda: setting.store(kind)).run()
    store.close()
    assert stolen == [0]
    assert threads() == []
    assert open_files(setting.folder) == []


def test_no_claim_expires_while_a_logger_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "LEASE_SECONDS", LEASE)
    setting, stolen = Setting(tmp_path, sizes=(4, 6)), []

    class Blocks(Logger):
        def finished(self, result):
            (other,) = (run.id for run in setting.plan.runs if run.id != result.id)
            if not stolen:
                stolen.append(steal(setting, "sqlite", other, 4 * LEASE))

    class Two(Waits):
        capacity = 2

        def wait(self):
            pass

    store = setting.store()
    Sweep(setting.plan, store, Two(), setting.registry, loggers=[Blocks()], open_store=setting.store).run()
    store.close()
    assert stolen == [0]


def test_without_a_second_store_object_claims_are_renewed_between_events(setting):
    """A store that is a Python object cannot be opened twice."""
    stolen = []

    class Turns(Waits):
        def events(self, timeout):
            if len(stolen) < 10:
                stolen.append(steal(setting, "sqlite", setting.plan.runs[0].id, 0.3 * LEASE))
            else:
                yield from super().events(timeout)

        def wait(self):
            assert threads() == []

    store = setting.store()
    Sweep(setting.plan, store, Turns(), setting.registry).run()
    store.close()
    assert stolen == [0] * 10


def test_a_job_without_a_living_worker_is_left_to_other_drivers(setting):
    """A driver that hangs keeps only the runs that are still trained."""
    stolen = []
    executor = Waits()
    executor.alive = False
    executor.wait = lambda: stolen.append(steal(setting, "sqlite", setting.plan.runs[0].id, 2 * LEASE))
    store = setting.store()
    Sweep(setting.plan, store, executor, setting.registry, open_store=setting.store).run()
    store.close()
    assert stolen[0] > 0


def test_a_store_that_fails_for_a_while_is_tried_again_and_reported_once(setting, caplog):
    failures = [StoreError("the database is locked")] * 3
    opened = []

    def open_store():
        if failures:
            raise failures.pop()
        opened.append(1)
        return setting.store()

    store = setting.store()
    with caplog.at_level(logging.WARNING, "flops_fit"):
        Sweep(setting.plan, store, Waits(), setting.registry, open_store=open_store).run()
    store.close()
    assert opened == [1]
    assert caplog.text.count("claims cannot be renewed now, will retry: the database is locked") == 1


def test_nothing_is_left_of_the_heartbeat_after_an_exception(setting):
    class Breaks(Waits):
        def wait(self):
            time.sleep(0.6 * LEASE)
            assert threads()
            raise KeyboardInterrupt

    store = setting.store()
    heartbeat = Heartbeat(setting.folder, "me", "local")
    sweep = Sweep(setting.plan, store, Breaks(), setting.registry, open_store=setting.store, heartbeat=heartbeat)
    sweep.executor.close = lambda: sweep.executor.jobs.clear()
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    assert threads() == []
    assert not (setting.folder / "drivers").exists()
    assert store.claim(setting.plan.runs[0].id, "the next", 1.0)
    store.close()
    assert open_files(setting.folder) == []


def test_the_file_of_a_driver_is_written_while_the_executor_gives_no_event(setting):
    beats = []

    class Looks(Waits):
        def wait(self):
            for _ in range(4):
                time.sleep(0.5 * LEASE)
                beats.extend(driver.beat for driver in drivers(setting.folder))

    heartbeat = Heartbeat(setting.folder, "me", "local")
    Sweep(setting.plan, setting.store(), Looks(), setting.registry, heartbeat=heartbeat).run()
    assert beats == sorted(set(beats))
    assert len(beats) == 4


def test_a_full_disk_stops_neither_the_heartbeat_nor_the_sweep(setting, caplog):
    heartbeat = Heartbeat(setting.folder, "me", "local")
    sweep = Sweep(setting.plan, setting.store(), Waits(), setting.registry, heartbeat=heartbeat)
    (setting.folder / "drivers").write_text("a file where a folder should be")
    sweep.executor.wait = lambda: time.sleep(LEASE)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        assert len(sweep.run()) == 1
    assert caplog.text.count("cannot be written now, will retry") == 1


def test_the_file_of_a_driver_that_cannot_release_its_claims_stays_for_the_next_driver(setting, caplog):
    store, run = setting.store(), setting.plan.runs[0]

    def refuse(run_id, owner):
        raise StoreError("results.sqlite: database or disk is full")

    heartbeat = Heartbeat(setting.folder, "me", "local")
    sweep = Sweep(setting.plan, store, Waits(), setting.registry, folder=setting.folder, heartbeat=heartbeat)
    sweep.executor.wait = lambda: setattr(store, "release", refuse)
    with pytest.raises(StoreError, match="full"):
        sweep.run()
    store.close()
    assert "are not released" in caplog.text
    (driver,) = drivers(setting.folder)  # this process lives
    assert driver.owner == sweep.owner
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    (file,) = (setting.folder / "drivers").iterdir()
    write(setting.folder, file.stem, driver.model_copy(update={"pid": child.pid}))
    second = setting.driver(setting.store(), folder=setting.folder, retrain=True)
    started = time.monotonic()
    second.run()
    assert time.monotonic() - started < LEASE
    assert not setting.store().renew(run.id, sweep.owner, LEASE)


def test_incomplete_files_of_dead_drivers_are_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    host, folder = socket.gethostname(), tmp_path / "drivers"
    folder.mkdir()
    names = (f"{host}-{child.pid}.json", f"{host}-{child.pid}-0123abcd.json", f".{host}-{child.pid}.json.0123abcd")
    dead = [folder / name for name in names]
    alive = [folder / f"{host}-{os.getpid()}.json", folder / f"another-{child.pid}.json", folder / "notes.json"]
    for file in (*dead, *alive):
        file.write_text("{")
    assert remove_dead_drivers(tmp_path) == []
    assert sorted(folder.iterdir()) == sorted(alive)


def test_old_temporary_files_of_a_study_are_removed_and_other_files_stay(setting):
    temporary = [".fit.json.0123abcd", "report/.isoflop.svg.0123abcd", "checkpoints/x/.claim.0123abcd"]
    temporary += [".results.json.new", ".results.log.jsonl.new"]
    others = [".fit.json.0123abce", ".notes.0123abcd", "fit.json.0123abcd", "notes/.fit.json.0123abcd"]
    for name in (*temporary, *others):
        (setting.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (setting.folder / name).write_text("{")
    for name in (*temporary, *others[1:]):
        os.utime(setting.folder / name, (0, 0))
    setting.driver(setting.store(), folder=setting.folder).run()
    assert not [name for name in temporary if (setting.folder / name).exists()]
    assert not [name for name in others if not (setting.folder / name).exists()]


def test_only_a_store_that_is_no_python_object_is_opened_again(tmp_path):
    study = plan(SURFACE, out=tmp_path / "study")
    settings = StudySettings(study.folder, study.registry, study.experiment, plan=study.plan)
    with study.store() as store:
        assert StudyResults(study.plan, settings, store).open_again is None
        again = StudyResults(study.plan, settings, None).open_again()
        assert type(again) is type(store)
        assert again is not store
        again.close()


# ---------------------------------------------------------------------------- drivers


def record(**changes):
    values = {
        "owner": "me",
        "host": "here",
        "pid": os.getpid(),
        "machine": this_machine(),
        "executor": "local",
        "started": time.time(),
        "updated": time.time(),
    }
    return Driver(**{**values, **changes})


def write(folder: Path, name: str, driver: Driver) -> Path:
    (folder / "drivers").mkdir(exist_ok=True)
    file = folder / "drivers" / f"{name}.json"
    file.write_text(driver.model_dump_json())
    return file


def test_a_process_that_has_the_id_of_a_dead_driver_is_not_taken_for_it(tmp_path):
    note = Heartbeat(tmp_path, "me", "local")
    note.started(None)
    (mine,) = drivers(tmp_path)
    assert mine.process_start is not None
    note.close()
    write(tmp_path, "reused", record(process_start=mine.process_start - 1, owner="dead"))
    assert drivers(tmp_path) == []
    assert remove_dead_drivers(tmp_path) == ["dead"]


def test_drivers_that_start_and_end_at_the_same_time_write_their_files(tmp_path, caplog):
    def start_and_end(name):
        for _ in range(300):
            note = Heartbeat(tmp_path, name, "local")
            note.write()
            note.close()

    threads = [threading.Thread(target=start_and_end, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert caplog.text == ""
    assert list(tmp_path.iterdir()) == []


def test_two_drivers_with_one_host_name_and_process_id_have_separate_files(tmp_path):
    """As in two containers with the network of their host."""
    first, second = Heartbeat(tmp_path, "first", "local"), Heartbeat(tmp_path, "second", "local")
    for note in (first, second):
        note.write()
    assert {driver.owner for driver in drivers(tmp_path)} == {"first", "second"}
    second.close()
    assert [driver.owner for driver in drivers(tmp_path)] == ["first"]
    first.close()


def test_a_zombie_is_dead(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        write(tmp_path, "zombie", record(pid=child.pid))
        assert drivers(tmp_path) == []


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_jump_of_the_clock_changes_nothing_on_this_machine(tmp_path, hours):
    write(tmp_path, "me", record(updated=time.time() + 3600 * hours, started=time.time() + 3600 * hours))
    assert len(live_drivers(tmp_path)) == len(drivers(tmp_path)) == 1


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_driver_elsewhere_is_alive_if_its_file_changes_and_dead_if_not_whatever_its_clock_shows(
    tmp_path, hours, monkeypatch
):
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 4.0)
    far = record(machine="another", pid=1, updated=time.time() + 3600 * hours)
    file = write(tmp_path, "far", far)
    beat = threading.Timer(0.5, lambda: write(tmp_path, "far", far.model_copy(update={"beat": 1})))
    beat.start()
    assert [driver.beat for driver in live_drivers(tmp_path)] == [1]
    beat.join()
    assert live_drivers(tmp_path) == []
    assert not file.exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"[" * 100_000, b'{"owner": 1}', b"null"])
def test_a_damaged_file_of_a_driver_blocks_nothing_and_is_named(tmp_path, content, caplog):
    (tmp_path / "drivers").mkdir()
    file = tmp_path / "drivers" / "host-1.json"
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        assert drivers(tmp_path) == live_drivers(tmp_path) == remove_dead_drivers(tmp_path) == []
    assert caplog.text.count(f"{file} is damaged") == 1
    assert file.exists()


def test_a_changed_byte_in_the_file_of_a_driver_does_not_make_it_look_dead(tmp_path):
    note = Heartbeat(tmp_path, "me", "local")
    note.started(None)
    (file,) = (tmp_path / "drivers").iterdir()
    text = file.read_text()
    file.write_text(text.replace(f'"pid": {os.getpid()}', f'"pid": {os.getpid() + 1}'))
    assert file.read_text() != text
    assert remove_dead_drivers(tmp_path) == []
    note.close()
