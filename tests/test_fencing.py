"""A driver that lost its claims replaces no result and stops no training. No trainer here repeats a loss."""

import itertools
import logging
import threading
import time

import pytest
from sweep_setting import Setting

from flops_fit_core import RunError, RunResult, StoreError
from flops_fit_core.plugins import Executor, JobEnded, Logger, Outbox, ResultStore
from flops_fit_core.study import sweep as sweep_module
from flops_fit_core.study.checkpoints import take_checkpoints
from flops_fit_core.study.other_stores import check_claims
from flops_fit_core.study.sweep import Sweep

LEASE = 1.0


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "LEASE_SECONDS", LEASE)
    return Setting(tmp_path, sizes=(4, 6))


class Varying(Executor):
    """Trains as ``inner`` and adds noise to every loss. Before the first result, it pauses its driver."""

    noise = itertools.count(1)

    def __init__(self, inner, meanwhile=None):
        self.inner, self.meanwhile = inner, meanwhile

    def submit(self, job):
        self.inner.submit(job)

    def events(self, timeout):
        for event in self.inner.events(timeout):
            if isinstance(event, RunResult):
                if self.meanwhile is not None:
                    pause, self.meanwhile = self.meanwhile, None
                    time.sleep(1.2 * LEASE)  # the driver's thread stands still and renews no claim
                    pause()
                yield event.model_copy(update={"loss": event.loss + 0.001 * next(self.noise)})
            else:
                yield event

    def cancel(self, job_id):
        self.inner.cancel(job_id)

    def close(self):
        self.inner.close()


class Silent(Executor):
    """Accepts jobs and ends them only when they are cancelled."""

    def __init__(self):
        self.jobs, self.cancelled = [], []

    def submit(self, job):
        self.jobs.append(job)

    def events(self, timeout):
        time.sleep(0.05)
        while self.cancelled and self.jobs:
            self.jobs = [job for job in self.jobs if job.id != self.cancelled[-1]]
            yield JobEnded(self.cancelled.pop(), "cancelled")

    def cancel(self, job_id):
        self.cancelled.append(job_id)

    def close(self):
        pass


class Finished(Logger):
    """The results that a driver acknowledges."""

    def __init__(self):
        self.results = []

    def finished(self, result):
        self.results.append(result)


class NotFenced(ResultStore):
    """A store with shared claims and without tokens."""

    def __init__(self, inner):
        self.inner = inner

    def add(self, result):
        self.inner.add(result)

    def all_attempts(self):
        return self.inner.all_attempts()

    def claim(self, run_id, owner, seconds):
        return bool(self.inner.claim(run_id, owner, seconds))

    def renew(self, run_id, owner, seconds):
        return self.inner.renew(run_id, owner, seconds)

    def release(self, run_id, owner):
        self.inner.release(run_id, owner)


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


# ---------------------------------------------------------------------------- results


@pytest.mark.parametrize("kind", ["sqlite", "json", "not fenced"])
def test_a_driver_that_was_paused_beyond_its_lease_replaces_no_acknowledged_result(setting, kind, caplog):
    def store():
        return NotFenced(setting.store()) if kind == "not fenced" else setting.store(kind)

    acknowledged, late = Finished(), Finished()

    def other_driver():
        Sweep(setting.plan, store(), Varying(setting.executor()), setting.registry, loggers=[acknowledged]).run()

    executor = Varying(setting.executor(), meanwhile=other_driver)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        results = Sweep(setting.plan, store(), executor, setting.registry, loggers=[late]).run()
    assert len(acknowledged.results) == 2
    assert {result.id: result for result in results} == {result.id: result for result in acknowledged.results}
    assert late.results == []
    assert (
        "another driver took the run over, so this result (completed) does not count; attempt 1 c" in caplog.text
    )
    attempts = [attempt for run in setting.plan.runs for attempt in store().attempts(run.id)]
    superseded = [attempt for attempt in attempts if attempt.superseded]
    assert len(superseded) == (0 if kind == "not fenced" else 1)
    assert len(attempts) - len(superseded) == 2


def test_a_late_result_counts_if_no_other_is_finished_and_the_other_driver_stops_training_the_run(setting):
    silent, late = Silent(), Finished()
    threads = []

    def drive_other():
        store = setting.store()
        Sweep(setting.plan, store, silent, setting.registry).run()
        store.close()

    def other_driver():
        threads.append(in_thread(drive_other))
        wait_until(lambda: silent.jobs)

    plan = setting.plan = setting.plan.model_copy(update={"runs": setting.plan.runs[:1]})
    executor = Varying(setting.executor(), meanwhile=other_driver)
    (result,) = Sweep(plan, setting.store(), executor, setting.registry, loggers=[late]).run()
    threads[0].join(20)
    assert not threads[0].is_alive()
    assert silent.jobs == []
    assert setting.store().attempts(result.id) == [result] == late.results


def test_a_driver_whose_runs_are_all_finished_by_another_cancels_the_job_and_ends(setting, caplog):
    elsewhere = Setting(setting.folder / "elsewhere", sizes=(4, 6))
    elsewhere.folder.mkdir()
    other_results = elsewhere.driver(elsewhere.store()).run()
    silent = Silent()

    def add():
        wait_until(lambda: silent.jobs)
        store = setting.store()
        for result in other_results:
            wait_until(lambda: silent.jobs)
            store.add(result, "the token of an earlier claim")
        store.close()

    thread = in_thread(add)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        results = Sweep(setting.plan, setting.store(), silent, setting.registry).run()
    thread.join()
    assert results == other_results
    assert "another driver has finished its runs" in caplog.text


def test_a_job_with_a_run_that_another_driver_finished_continues_with_its_other_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "LEASE_SECONDS", LEASE)
    settings = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        settings.append(Setting(folder, sizes=(4,), sweep={"seeds": [0, 1]}))
    setting, elsewhere = settings
    first, second = elsewhere.driver(elsewhere.store()).run()
    (job, other) = setting.plan.jobs({run.id for run in setting.plan.runs}, {})
    both = job.model_copy(update={"trajectories": (*job.trajectories, *other.trajectories)})

    class Steps(Silent):
        """Waits until the other driver's result is noticed, then gives the result of the second run."""

        def events(self, timeout):
            if not self.jobs:
                return
            (job,) = self.jobs
            setting.store().add(first, "the token of an earlier claim")
            time.sleep(0.6 * LEASE)
            yield first.model_copy(update={"loss": first.loss + 1})
            time.sleep(0.6 * LEASE)
            yield second
            self.jobs = []
            yield JobEnded(job.id)

    executor = Steps()
    sweep = Sweep(setting.plan, setting.store(), executor, setting.registry)
    monkeypatch.setattr(sweep_module, "missing_jobs", lambda *arguments, **options: [both])
    assert sweep.run() == [first, second]
    assert executor.cancelled == []


def test_a_failure_of_a_driver_that_lost_its_claim_ends_no_other_training(setting, caplog):
    plan = setting.plan.model_copy(update={"runs": setting.plan.runs[:1]})
    (run,) = plan.runs
    other = setting.store()

    class Fails(Silent):
        def events(self, timeout):
            if not self.jobs:
                return
            (job,) = self.jobs
            time.sleep(1.2 * LEASE)
            assert other.claim(run.id, "another driver", 60.0)
            self.jobs = []
            yield RunResult(run=run, status="failed", error=RunError(type="OutOfMemory", message="no memory"))
            yield JobEnded(job.id, "killed by SIGKILL")
            threading.Timer(0.5, lambda: finish(run)).start()

    def finish(run):
        store = setting.store()
        store.add(RunResult(run=run, status="diverged"))
        store.close()

    with caplog.at_level(logging.WARNING, "flops_fit"):
        (result,) = Sweep(plan, setting.store(), Fails(), setting.registry).run()
    assert result.status == "diverged"
    assert [attempt.status for attempt in other.attempts(run.id)] == ["diverged"]
    assert "this result (failed) does not count; no attempt counts yet" in caplog.text


def test_a_retry_has_a_higher_number_than_every_superseded_attempt(setting):
    store = setting.store()
    results = setting.driver(store).run()
    store.add(results[0].model_copy(update={"attempt": 7, "loss": 1.0}), "the token of an earlier claim")
    assert [attempt.superseded for attempt in store.attempts(results[0].id)] == [False, True]
    again = setting.driver(store, retrain=True).run()
    assert [result.attempt for result in again] == [8, 2]


def test_a_driver_that_is_paused_between_claim_and_submission_submits_nothing(setting, monkeypatch, caplog):
    plan = setting.plan = setting.plan.model_copy(update={"runs": setting.plan.runs[:1]})
    paused, acknowledged, submitted = [], [], []

    class Records(Varying):
        def submit(self, job):
            submitted.append(job)
            super().submit(job)

    def pause(*arguments):
        if not paused:
            paused.append(True)
            time.sleep(1.2 * LEASE)
            store = setting.store()
            other = Sweep(plan, store, Varying(setting.executor()), setting.registry, folder=setting.folder)
            acknowledged.extend(other.run())
        return take_checkpoints(*arguments)

    monkeypatch.setattr(sweep_module, "take_checkpoints", pause)
    executor = Records(setting.executor())
    sweep = Sweep(plan, setting.store(), executor, setting.registry, folder=setting.folder)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        assert sweep.run() == acknowledged
    assert submitted == []
    assert "waits for another driver" in caplog.text
    assert len(setting.store().attempts(plan.runs[0].id)) == 1


# ---------------------------------------------------------------------------- the outbox


def test_two_workers_of_a_run_keep_both_results_in_the_outbox_and_one_counts(setting):
    elsewhere = Setting(setting.folder / "elsewhere", sizes=(4, 6))
    elsewhere.folder.mkdir()
    result = elsewhere.driver(elsewhere.store()).run()[0]
    other = result.model_copy(update={"loss": result.loss + 1})
    outbox = Outbox(setting.folder)
    outbox.put(result, "token-a")
    outbox.put(other, "token-b")
    assert sorted(file.name for file in outbox.path.iterdir()) == [
        f"{result.id}.token-a.json",
        f"{result.id}.token-b.json",
    ]
    assert outbox.get(result.id, "token-b") == other
    store = setting.store()
    results = setting.driver(store, folder=setting.folder).run()
    assert results[0] == result
    superseded = other.model_copy(update={"attempt": 2, "superseded": True})
    assert store.attempts(result.id) == [result, superseded]
    assert outbox.entries() == []
    assert setting.trained == {6: 1}


@pytest.mark.parametrize("token", [None, "token-a"])
@pytest.mark.parametrize("fenced", [True, False])
def test_a_late_result_in_the_outbox_replaces_no_finished_result(setting, token, fenced):
    store = setting.store() if fenced else NotFenced(setting.store())
    results = setting.driver(store, folder=setting.folder).run()
    late = results[0].model_copy(update={"loss": results[0].loss + 1})
    Outbox(setting.folder).put(late, token)
    assert setting.driver(store, folder=setting.folder).run() == results
    assert Outbox(setting.folder).entries() == []


def test_a_token_with_any_characters_is_a_file_name(tmp_path, setting):
    result = RunResult(run=setting.plan.runs[0], status="diverged")
    outbox = Outbox(tmp_path)
    outbox.put(result, "../../a token/ü" * 20)
    (entry,) = outbox.entries()
    assert (entry.result, entry.token, entry.file.parent) == (result, "../../a token/ü" * 20, outbox.path)
    outbox.remove(result.id, entry.token)
    assert outbox.entries() == []


# ---------------------------------------------------------------------------- stores


def test_a_store_that_is_shared_between_machines_needs_claims_that_others_see(setting):
    class Shared(NotFenced):
        shared_between_machines = True

    check_claims(Shared(setting.store()))
    Shared.claim = ResultStore.claim
    with pytest.raises(
        StoreError, match=r"Shared sets shared_between_machines.*implement claim, renew and release"
    ):
        check_claims(Shared(setting.store()))
