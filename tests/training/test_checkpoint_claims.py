"""A worker of a driver that lost its claim writes no checkpoint, and such a driver deletes none."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from small import Bench, stopped_after, train

from flops_fit_core import ClaimLost, RunResult
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import QueuedJobs, checkpoint_claim
from flops_fit_core.study.directory import remove_temporary_files
from flops_fit_core.study.heartbeat import Heartbeat, drivers
from flops_fit_core.training import TrajectoryFolder, checkpoint_files, work


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(checkpoint_files, "TAKE_OVER_SECONDS", 0.5)
    monkeypatch.setattr(checkpoint_claim, "LOCK_SECONDS", 1.0)


def write(folder, content=b"content"):
    with folder.writing(folder.latest) as stream:
        stream.write(content)


def claimed(tmp_path, token):
    folder = TrajectoryFolder(tmp_path, "abc", token)
    folder.take()
    return folder


def test_a_worker_writes_while_the_trajectory_belongs_to_its_driver(tmp_path):
    folder = claimed(tmp_path, "first")
    write(folder)
    assert folder.latest.read_bytes().startswith(b"content")
    assert sorted(file.name for file in folder.path.iterdir()) == ["claim", "claim.lock", "latest.pt"]
    assert folder.bytes == folder.latest.stat().st_size


def test_a_worker_of_an_earlier_driver_replaces_no_checkpoint_and_ends(tmp_path, caplog):
    first = claimed(tmp_path, "first")
    write(first)
    claimed(tmp_path, "second")
    before = first.latest.read_bytes()
    with caplog.at_level(logging.WARNING, "flops_fit"), pytest.raises(ClaimLost, match="trajectory abc"):
        write(first, b"late")
    assert first.latest.read_bytes() == before
    assert "is not written: another driver trains this trajectory now" in caplog.text
    assert list(first.path.glob(".*.pt*")) == []


def test_an_earlier_driver_deletes_no_checkpoint(tmp_path):
    first, second = claimed(tmp_path, "first"), claimed(tmp_path, "second")
    write(second)
    assert (first.forget_latest(), first.remove()) == (0, 0)
    assert second.latest.exists()
    assert second.forget_latest() > 0
    assert not second.path.exists()


def test_a_worker_writes_nothing_into_a_folder_that_a_driver_has_deleted(tmp_path):
    folder = claimed(tmp_path, "first")
    write(folder)
    TrajectoryFolder(tmp_path, "abc", "first").remove()
    with pytest.raises(ClaimLost):
        write(folder)
    assert not folder.latest.exists()


WRITER = """
import os, sys
from pathlib import Path
from flops_fit_core.training import TrajectoryFolder

folder = TrajectoryFolder(Path(sys.argv[1]), "abc")
if sys.argv[2] == "stream":
    with folder.writing(folder.latest) as stream:
        stream.write(b"half")
        stream.flush()
        os._exit(9)
folder.write_with(lambda path: (path.write_bytes(b"half"), os._exit(9)), folder.latest)
"""


@pytest.mark.parametrize("kind", ["stream", "library"])
def test_the_next_driver_finds_the_half_checkpoint_of_a_killed_worker(tmp_path, kind):
    done = subprocess.run([sys.executable, "-c", WRITER, tmp_path, kind])
    assert done.returncode == 9
    (half,) = (tmp_path / "checkpoints" / "abc").iterdir()
    os.utime(half, (0, 0))
    remove_temporary_files(tmp_path)
    assert not half.exists()


def test_a_folder_without_checkpoints_is_removed_while_other_drivers_create_theirs(tmp_path):
    failures = []

    def take_and_remove(trajectory):
        folder = TrajectoryFolder(tmp_path, trajectory, "token")
        for _ in range(300):
            try:
                folder.take()
                write(folder)
                folder.forget_latest()
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=take_and_remove, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_a_study_are_read_while_drivers_and_workers_replace_and_remove_them(tmp_path):
    failures, ended = [], threading.Event()

    def read():
        while not ended.is_set():
            try:
                assert TrajectoryFolder(tmp_path, "a").bytes >= 0
                assert len(drivers(tmp_path)) <= 1
                remove_temporary_files(tmp_path)
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    folder = TrajectoryFolder(tmp_path, "a", "token")
    for _ in range(150):
        heartbeat = Heartbeat(tmp_path, "me", "local")
        heartbeat.write()
        folder.take()
        write(folder)
        folder.remove()
        heartbeat.close()
    ended.set()
    thread.join(60)
    assert failures == []


def test_a_process_that_is_paused_between_check_and_replacement_keeps_the_next_driver_waiting(tmp_path):
    first, second = claimed(tmp_path, "first"), TrajectoryFolder(tmp_path, "abc", "second")
    order = []
    paused, resume = threading.Event(), threading.Event()

    def replace(source, target):
        paused.set()
        resume.wait(20)
        order.append("replaced")

    temporary = type("Paused", (), {"replace": replace})()
    thread = threading.Thread(target=first._replace, args=(temporary, first.latest))
    thread.start()
    paused.wait(20)
    with pytest.raises(TimeoutError):
        second.take()
    resume.set()
    thread.join(20)
    second.take()
    order.append("taken")
    assert order == ["replaced", "taken"]


def test_a_driver_that_was_paused_since_its_claim_takes_no_checkpoints_from_the_next_driver(tmp_path):
    first, second = TrajectoryFolder(tmp_path, "abc", "first"), claimed(tmp_path, "second")
    assert first.take(lambda: False) is False
    write(second)
    with pytest.raises(ClaimLost):
        write(first)


def test_a_damaged_claim_lets_nobody_write_and_the_next_claim_repairs_it(tmp_path):
    folder = claimed(tmp_path, "first")
    (folder.path / "claim").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClaimLost):
        write(folder)
    folder.take()
    write(folder)


def test_a_store_that_is_not_fenced_needs_no_claim(tmp_path):
    folder = TrajectoryFolder(tmp_path, "abc")
    folder.take()
    write(folder)
    assert [file.name for file in folder.path.iterdir()] == ["latest.pt"]


def test_a_lock_that_the_file_system_does_not_support_is_no_error(tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    first = claimed(tmp_path, "first")
    write(first)
    claimed(tmp_path, "second")
    with pytest.raises(ClaimLost):
        write(first)


# ---------------------------------------------------------------------------- jobs


def job_of(bench, token):
    one_step = bench.table(1)["sweep"]["budgets"][0]
    table = bench.table(sweep={"budgets": [one_step * 40, one_step * 90]}, schedule={"name": "wsd"})
    plan = make_plan(make_experiment(table, bench.registry()))
    (job,) = plan.jobs({run.id for run in plan.runs}, {})
    names = [job.trajectories[0].id, *(run.id for run in job.runs)]
    return table, job.model_copy(update={"claim_tokens": dict.fromkeys(names, token)})


def events(bench, job, folder, **options):
    return work(
        job.model_dump_json(),
        bench.registry().setup.model_dump_json(),
        objects=bench.registry().objects,
        folder=folder,
        **options,
    )


def test_a_job_that_was_taken_over_ends_without_results(tmp_path):
    bench = Bench()
    _, job = job_of(bench, "first")
    TrajectoryFolder(tmp_path, job.trajectories[0].id, "second").take()
    results = []
    with pytest.raises(ClaimLost):
        results += [event for event in events(bench, job, tmp_path) if isinstance(event, RunResult)]
    assert results == []
    assert TrajectoryFolder(tmp_path, job.trajectories[0].id).branches() == {}


def test_the_next_driver_continues_from_the_checkpoint_of_the_first_with_the_same_result(tmp_path):
    bench = Bench()
    table, job = job_of(bench, "first")
    uninterrupted = train(table, bench.registry())
    TrajectoryFolder(tmp_path, job.trajectories[0].id, "first").take()
    stopped = [*events(bench, job, tmp_path, should_stop=stopped_after(25))]
    assert not any(isinstance(event, RunResult) for event in stopped)
    _, job = job_of(bench, "second")
    TrajectoryFolder(tmp_path, job.trajectories[0].id, "second").take()
    results = [event for event in events(bench, job, tmp_path) if isinstance(event, RunResult)]
    assert [result.loss for result in results] == [result.loss for result in uninterrupted]


def test_a_queued_job_that_the_next_driver_takes_over_goes_on_writing_checkpoints(tmp_path):
    bench = Bench()
    _, job = job_of(bench, "first")
    trajectory = job.trajectories[0].id
    jobs = QueuedJobs(tmp_path)
    submitted = jobs.add(job, "{}")
    worker = TrajectoryFolder(tmp_path, trajectory, "first")
    worker.take()
    second = TrajectoryFolder(tmp_path, trajectory, "second")
    second.take()
    taken = jobs.take_over(submitted, dict.fromkeys([trajectory], "second"))
    write(worker)
    assert jobs.is_owned(taken)
    assert not jobs.is_owned(submitted)
    assert jobs.is_current(submitted), "the worker continues"
    assert worker.forget_latest() == 0, "the earlier driver has the worker's token"
    assert second.forget_latest() > 0


def test_a_worker_waits_for_a_driver_that_is_taking_its_job_over(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "TAKE_OVER_SECONDS", 20.0)
    worker = claimed(tmp_path, "first")
    claimed(tmp_path, "second")
    admit = threading.Timer(0.5, lambda: checkpoint_claim.CheckpointClaim(worker.path).admit("second", "first"))
    admit.start()
    started = time.monotonic()
    write(worker)
    assert 0.3 < time.monotonic() - started < 10


def test_files_of_other_programs_are_no_branches(tmp_path):
    folder = TrajectoryFolder(tmp_path, "abc")
    folder.path.mkdir(parents=True)
    for name in ("step-7.pt", "step-latest.pt", "step-.pt"):
        Path(folder.path, name).touch()
    assert list(folder.branches()) == [7]
