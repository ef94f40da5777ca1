"""The sweep driver, with a real store and real training in this process."""

import logging
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from sweep_setting import Setting

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from kills import run_kills

from flops_fit_core import StoreError
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import Executor, JobEnded, Logger, Outbox, hookimpl
from flops_fit_core.study.checkpoints import delete_checkpoints
from flops_fit_core.study.heartbeat import Driver, this_machine
from flops_fit_core.study.jobs import missing_jobs, without_finished_runs
from flops_fit_core.study.states import count_states
from flops_fit_core.study.sweep import Sweep
from flops_fit_core.training.checkpoint_files import TrajectoryFolder


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path)


class RecordingLogger(Logger):
    """A logger that records its calls."""

    def __init__(self):
        self.calls = []

    def started(self, plan):
        self.calls.append("started")

    def progress(self, progress):
        self.calls.append("progress")

    def finished(self, result):
        self.calls.append(result.status)

    def close(self):
        self.calls.append("closed")


# ---------------------------------------------------------------------------- results


def test_a_sweep_trains_every_run_of_its_plan_once_and_the_next_trains_none(setting):
    store = setting.store()
    results = setting.driver(store).run()
    assert [result.id for result in results] == [run.id for run in setting.plan.runs]
    assert all(result.status == "completed" for result in results)
    assert setting.trained == {4: 1, 6: 1, 8: 1}
    assert setting.driver(store).run() == results
    assert setting.trained == {4: 1, 6: 1, 8: 1}


def test_a_run_that_raises_is_a_result_and_the_others_are_trained(setting):
    setting.break_size(6)
    results = setting.driver(setting.store()).run()
    assert [result.status for result in results] == ["completed", "failed", "completed"]
    error = results[1].error
    assert (error.type, error.message) == ("RuntimeError", "this size breaks")
    assert "Traceback" in error.traceback
    assert count_states(setting.plan, results) == {"waiting": 0, "completed": 2, "diverged": 0, "failed": 1}


def test_each_call_tries_a_failed_run_once_more_and_keeps_every_attempt(setting):
    setting.break_size(6)
    store = setting.store()
    for attempt in (1, 2, 3):
        results = setting.driver(store).run()
        assert results[1].attempt == attempt
    assert setting.trained == {4: 1, 6: 3, 8: 1}
    setting.bench.built.pop()
    results = setting.driver(store).run()
    assert results[1].status == "completed"
    statuses = [result.status for result in store.attempts(results[1].id)]
    assert statuses == ["failed", "failed", "failed", "completed"]


def test_failed_runs_are_not_retried_on_request(setting):
    setting.break_size(6)
    store = setting.store()
    setting.driver(store).run()
    results = setting.driver(store, retry_failed=False).run()
    assert results[1].status == "failed"
    assert setting.trained == {4: 1, 6: 1, 8: 1}


def test_training_again_keeps_the_old_attempts(setting):
    store = setting.store()
    first = setting.driver(store).run()
    second = setting.driver(store, retrain=True).run()
    assert [result.attempt for result in second] == [2, 2, 2]
    assert [result.loss for result in second] == [result.loss for result in first]
    assert len(store.attempts(first[0].id)) == 2


def test_a_diverged_run_is_finished(tmp_path):
    setting = Setting(tmp_path, sizes=(4,), optimizer={"name": "adamw", "lr": 1e30})
    store = setting.store()
    for _ in range(2):
        (result,) = setting.driver(store).run()
        assert result.status == "diverged"
    assert setting.trained == {4: 1}


# ---------------------------------------------------------------------------- several drivers


def test_two_drivers_on_one_store_never_train_a_run_twice(tmp_path):
    setting = Setting(tmp_path, sizes=(2, 3, 4, 5, 6, 7, 8, 9))
    setting.store().close()
    results = {}

    def drive(name):
        store = setting.store()
        results[name] = setting.driver(store).run()
        store.close()

    threads = [threading.Thread(target=drive, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert setting.trained == dict.fromkeys(range(2, 10), 1)
    assert results["a"] == results["b"]
    assert len(results["a"]) == 8


def test_a_claim_of_a_dead_driver_expires(setting):
    store = setting.store()
    dead = setting.plan.runs[0].id
    assert store.claim(dead, "a driver that died", 1.5)
    started = time.monotonic()
    results = setting.driver(store).run()
    assert time.monotonic() - started > 1.0
    assert len(results) == 3
    assert setting.trained == {4: 1, 6: 1, 8: 1}


def test_claims_are_released_at_the_end(setting):
    store = setting.store()
    setting.driver(store).run()
    assert all(store.claim(run.id, "the next", 1.0) for run in setting.plan.runs)


# ---------------------------------------------------------------------------- who listens


def test_loggers_are_called_at_the_start_for_each_result_and_at_the_end(setting):
    notes = RecordingLogger()
    setting.driver(setting.store(), loggers=[notes]).run()
    assert [call for call in notes.calls if call != "progress"] == ["started", *["completed"] * 3, "closed"]


@pytest.mark.parametrize("broken", ["started", "finished", "close"])
def test_a_logger_that_raises_does_not_stop_the_sweep_and_is_reported_once(setting, caplog, broken):
    class Broken(RecordingLogger):
        pass

    def fail(self, *arguments):
        raise OSError("the network is down")

    setattr(Broken, broken, fail)
    notes, broken_logger = RecordingLogger(), Broken()
    with caplog.at_level(logging.ERROR, "flops_fit"):
        results = setting.driver(setting.store(), loggers=[broken_logger, notes]).run()
    assert len(results) == 3
    assert broken == "close" or broken_logger.calls[-1] == "closed", "it may have something to close"
    assert notes.calls.count("completed") == 3
    assert len([record for record in caplog.records if "logger Broken stops" in record.message]) == 1


def test_an_observer_that_raises_does_not_stop_the_sweep(setting):
    observed = []

    class Broken:
        @hookimpl
        def flops_fit_run_finished(self, run, result):
            raise OSError("the network is down")

    class Works:
        @hookimpl
        def flops_fit_run_finished(self, run, result):
            observed.append((run.id, result.status))

        @hookimpl
        def flops_fit_sweep_finished(self, plan, results):
            observed.append(len(results))

    registry = setting.registry.with_plugins({"broken": Broken(), "works": Works()})
    setting.driver(setting.store(), registry).run()
    assert observed == [*((run.id, "completed") for run in by_flops(setting.plan)), 3]


def by_flops(plan):
    return sorted(plan.runs, key=lambda run: -run.flops)


# ---------------------------------------------------------------------------- what stops a sweep


def test_ctrl_c_closes_the_executor_releases_claims_and_keeps_results(setting):
    closed = []
    store = setting.store()

    class Stops(RecordingLogger):
        def finished(self, result):
            raise KeyboardInterrupt

    driver = setting.driver(store, loggers=[Stops()])
    close = driver.executor.close
    driver.executor.close = lambda: (closed.append(True), close())
    with pytest.raises(KeyboardInterrupt):
        driver.run()
    assert closed
    assert len(store.results()) == 1
    assert all(store.claim(run.id, "the next", 1.0) for run in setting.plan.runs)
    for run in setting.plan.runs:
        store.release(run.id, "the next")
    assert len(setting.driver(store).run()) == 3
    assert setting.trained == {4: 1, 6: 1, 8: 1}


def test_a_store_that_cannot_add_a_result_ends_the_sweep_with_its_error(setting):
    class Full:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def add(self, result, token=None):
            raise StoreError("the disk is full")

    closed = []
    store = setting.store()
    driver = setting.driver(Full(store))
    close = driver.executor.close
    driver.executor.close = lambda: (closed.append(True), close())
    with pytest.raises(StoreError, match="the disk is full"):
        driver.run()
    assert closed
    assert store.results() == []


def test_a_run_whose_worker_died_is_a_failed_result(setting):
    class Dies(Executor):
        capacity = 2

        def submit(self, job):
            self.jobs = [*getattr(self, "jobs", []), job]

        def events(self, timeout):
            while self.jobs:
                yield JobEnded(self.jobs.pop().id, "killed by SIGKILL")

        def cancel(self, job_id):
            pass

    store = setting.store()
    results = Sweep(setting.plan, store, Dies(), setting.registry).run()
    assert [(result.status, result.error.type, result.error.message) for result in results] == [
        ("failed", "WorkerLost", "killed by SIGKILL")
    ] * 3


def test_a_job_that_ends_without_a_result_and_without_an_error_is_a_failed_result_too(setting):
    class Forgets(Executor):
        def submit(self, job):
            self.job = job

        def events(self, timeout):
            yield JobEnded(self.job.id)

        def cancel(self, job_id):
            pass

    results = Sweep(setting.plan, setting.store(), Forgets(), setting.registry).run()
    assert [result.status for result in results] == ["failed"] * 3


# ---------------------------------------------------------------------------- killed


@pytest.mark.slow
@pytest.mark.parametrize(("store", "workers"), [("sqlite", 1), ("json", 0)])
def test_a_sweep_that_is_killed_loses_nothing_and_is_resumed(store, workers):
    tally = run_kills(store, 2, of_workers=False, seed=2, sizes=2, flops=3e8, workers=workers)
    assert tally.kills == 2
    assert (tally.lost, tally.retrained, tally.orphans, tally.unopened) == (0, 0, 0, 0)
    assert tally.lines > 0


# ---------------------------------------------------------------------------- trunks and their checkpoints


def trunks(tmp_path):
    """Two branches of one trunk of 60 steps."""
    setting = Setting(tmp_path, sizes=(8,), schedule={"name": "wsd"})
    one_step = setting.bench.table(1)["sweep"]["budgets"][0]
    setting.experiment = make_experiment(
        setting.bench.table(sweep={"budgets": [30 * one_step, 60 * one_step]}, schedule={"name": "wsd"}),
        setting.registry,
    )
    setting.plan = make_plan(setting.experiment)
    assert len(setting.plan.trajectories) == 1
    return setting


def test_a_branch_that_another_driver_finished_is_not_trained_again(tmp_path):
    setting = trunks(tmp_path)
    store = setting.store()
    (job,) = missing_jobs(setting.plan, store)
    first, second = setting.driver(store).run()
    before = len(setting.bench.served)
    assert without_finished_runs(job, store) is None
    store.add(first.model_copy(update={"attempt": 2}))
    later = job.model_copy(update={"attempts": {first.id: 2, second.id: 2}})
    remaining = without_finished_runs(later, store)
    assert [run.id for run in remaining.runs] == [second.id]
    assert remaining.id == job.id
    assert len(setting.bench.served) == before
    store.close()


def test_a_driver_releases_the_claims_of_runs_that_needed_no_training(tmp_path):
    setting = trunks(tmp_path)
    store = setting.store()
    setting.driver(store).run()
    for trajectory in setting.plan.trajectories:
        for name in (trajectory.id, *(run.id for run in trajectory.runs)):
            assert store.claim(name, "another driver", 5.0)
    store.close()


def interrupted(setting):
    """A failed run with a checkpoint in the middle of it."""
    setting.break_size(8)
    store = setting.store()
    setting.driver(store, folder=setting.folder).run()
    (failed,) = [result for result in store.results() if result.status == "failed"]
    folder = TrajectoryFolder(setting.folder, failed.run.trajectory)
    folder.path.mkdir(parents=True)
    folder.latest.write_bytes(b"the middle of the run")
    return store, folder


def test_a_failed_run_that_is_not_retried_keeps_its_checkpoint(setting):
    store, folder = interrupted(setting)
    setting.driver(store, folder=setting.folder, retry_failed=False).run()
    assert folder.latest.exists()
    store.close()


def test_pruning_keeps_checkpoints_of_unfinished_runs_unless_asked(setting):
    store, folder = interrupted(setting)
    assert delete_checkpoints(setting.plan, store, setting.folder) == 0
    assert store.claim(folder.path.name, "a driver at work", 60.0)
    assert delete_checkpoints(setting.plan, store, setting.folder, unfinished=True) == 0
    store.release(folder.path.name, "a driver at work")
    assert delete_checkpoints(setting.plan, store, setting.folder, unfinished=True) == 21
    assert not folder.path.exists()
    store.close()


def test_the_next_driver_deletes_checkpoints_of_finished_runs(setting):
    store = setting.store()
    done = setting.driver(store, folder=setting.folder).run()[0]
    folder = TrajectoryFolder(setting.folder, done.run.trajectory)
    folder.path.mkdir(parents=True)
    folder.latest.write_bytes(b"left")
    setting.driver(store, folder=setting.folder).run()
    assert not folder.path.parent.exists()
    store.close()


# ---------------------------------------------------------------------------- lost workers, the outbox


class Losing(Executor):
    """An executor that loses some jobs the first time, or always, before it trains them as another does."""

    def __init__(self, inner, times):
        self.inner, self.times = inner, times
        self.lost, self.events_of_lost = Counter(), []

    def submit(self, job):
        if self.lost[job.runs[0].size] < self.times.get(job.runs[0].size, 0):
            self.lost[job.runs[0].size] += 1
            self.events_of_lost.append(JobEnded(job.id, "killed by SIGKILL"))
        else:
            self.inner.submit(job)

    def events(self, timeout):
        while self.events_of_lost:
            yield self.events_of_lost.pop()
        yield from self.inner.events(timeout)

    def cancel(self, job_id):
        self.inner.cancel(job_id)

    def close(self):
        self.inner.close()


def attempts(store, plan):
    return {run.size: [(result.attempt, result.status) for result in store.attempts(run.id)] for run in plan.runs}


def test_a_run_that_loses_its_worker_is_retried_immediately_and_only_once(setting):
    store = setting.store()
    executor = Losing(setting.executor(), {4: 1, 6: 9})
    Sweep(setting.plan, store, executor, setting.registry).run()
    assert attempts(store, setting.plan) == {
        4: [(1, "failed"), (2, "completed")],
        6: [(1, "failed"), (2, "failed")],
        8: [(1, "completed")],
    }
    assert executor.lost == {4: 1, 6: 2}
    assert store.get(setting.plan.runs[1].id).error.message == "killed by SIGKILL"


def test_without_retry_a_lost_run_stays_lost(setting):
    store = setting.store()
    executor = Losing(setting.executor(), {4: 1})
    Sweep(setting.plan, store, executor, setting.registry, retry_failed=False).run()
    assert attempts(store, setting.plan)[4] == [(1, "failed")]


def result_of_the_first(setting):
    """As a worker would have left it."""
    other = Setting(setting.folder / "elsewhere")
    return other.driver(other.store()).run()[0]


def test_results_that_arrived_without_a_driver_are_stored_and_not_trained_again(setting):
    (setting.folder / "elsewhere").mkdir()
    outbox = Outbox(setting.folder)
    outbox.put(result_of_the_first(setting))
    results = setting.driver(setting.store(), folder=setting.folder).run()
    assert [result.status for result in results] == ["completed"] * 3
    assert setting.trained == {6: 1, 8: 1}
    assert outbox.results() == []


def test_results_in_the_outbox_of_a_live_driver_are_not_taken(setting):
    (setting.folder / "elsewhere").mkdir()
    outbox = Outbox(setting.folder)
    remaining = result_of_the_first(setting)
    outbox.put(remaining)
    store = setting.store()
    assert store.claim(remaining.id, "a driver that lives", 2.0)
    sweep = setting.driver(store, folder=setting.folder)
    sweep._collect_outbox([])
    assert outbox.get(remaining.id) == remaining
    assert store.get(remaining.id) is None
    assert len(sweep.run()) == 3
    assert setting.trained == {6: 1, 8: 1}, "collected once the other driver's claim had run out"


def test_a_lost_job_takes_no_result_away(setting):
    """Another driver may have stored the result."""
    store = setting.store()

    class Stored(Losing):
        def submit(self, job):
            if job.runs[0].id == result.id:
                store.add(result)
            super().submit(job)

    (setting.folder / "elsewhere").mkdir()
    result = result_of_the_first(setting)
    Sweep(setting.plan, store, Stored(setting.executor(), {4: 1}), setting.registry).run()
    assert attempts(store, setting.plan)[4] == [(1, "completed")]


def record_driver(folder, name, pid, **changes):
    """Write the file of a driver with this process id."""
    driver = Driver(
        owner=name,
        host=socket.gethostname(),
        pid=pid,
        machine=this_machine(),
        executor="processes",
        started=0.0,
        updated=time.time(),
    )
    (folder / "drivers").mkdir(exist_ok=True)
    text = driver.model_copy(update=changes).model_dump_json()
    (folder / "drivers" / f"{name}.json").write_text(text)


def pid_of_a_dead_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_claims_of_a_driver_killed_on_this_machine_are_released_immediately(setting):
    store = setting.store()
    pid = pid_of_a_dead_process()
    record_driver(setting.folder, "killed", pid)
    record_driver(setting.folder, "far", pid, machine="another one")
    first, second, _ = setting.plan.runs
    assert store.claim(first.id, "killed", 60.0)
    assert store.claim(second.id, "far", 2.5)
    started = time.monotonic()
    assert len(setting.driver(store, folder=setting.folder).run()) == 3
    assert 2.0 < time.monotonic() - started < 20, "the other machine's driver may live"
    assert [file.name for file in (setting.folder / "drivers").iterdir()] == ["far.json"]


def test_a_result_that_another_driver_removes_from_the_outbox_is_skipped(setting, monkeypatch):
    (setting.folder / "elsewhere").mkdir()
    outbox = Outbox(setting.folder)
    result = result_of_the_first(setting)
    outbox.put(result)
    files = list(outbox.path.glob("*.json"))
    outbox.remove(result.id)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(files))
    assert outbox.results() == []
    assert outbox.get(result.id) is None


def test_a_result_of_a_driver_killed_on_this_machine_is_collected_and_its_run_is_not_trained_again(setting):
    store = setting.store()
    (setting.folder / "elsewhere").mkdir()
    result = result_of_the_first(setting)
    token = store.claim(result.id, "killed", 60.0)
    Outbox(setting.folder).put(result, token)
    record_driver(setting.folder, "killed", pid_of_a_dead_process())
    setting.driver(store, folder=setting.folder).run()
    assert store.attempts(result.id) == [result]
    assert setting.trained == {6: 1, 8: 1}


def test_claims_of_a_driver_that_dies_while_another_waits_are_released_immediately(setting):
    store = setting.store()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record_driver(setting.folder, "killed", other.pid)
    assert store.claim(setting.plan.runs[0].id, "killed", 60.0)
    killer = threading.Timer(3.0, other.kill)
    killer.start()
    started = time.monotonic()
    assert len(setting.driver(store, folder=setting.folder).run()) == 3
    killer.join()
    other.wait()
    assert 2.0 < time.monotonic() - started < 30
