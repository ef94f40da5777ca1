import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from flops_fit_core import RunResult, plan
from flops_fit_core.plugins import Executor, JobEnded
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing import ExecutorConformance
from flops_fit_core.testing.executors import (
    CRAWL,
    DIE,
    HANG,
    LEARN,
    Outcome,
    is_running,
    tiny_jobs,
    tiny_registry,
    traced,
)
from flops_fit_core.training.executor_context import StudyExecutorContext

# ---------------------------------------------------------------------------- conformance


class TestWorkerProcesses(ExecutorConformance):
    name = "processes"


class TestInProcess(ExecutorConformance):
    name = "local"
    isolated = False


class Wrapped(Executor):
    """A correct executor, for subclasses that break one method."""

    def __init__(self, inner):
        self.inner, self.capacity = inner, inner.capacity
        self.close = inner.close

    def submit(self, job):
        self.inner.submit(job)

    def cancel(self, job_id):
        self.inner.cancel(job_id)

    def events(self, timeout):
        yield from self.inner.events(timeout)


class EndsTwice(Wrapped):
    def events(self, timeout):
        for event in self.inner.events(timeout):
            yield event
            if isinstance(event, JobEnded):
                yield event


class DropsErrors(Wrapped):
    def events(self, timeout):
        for event in self.inner.events(timeout):
            if not (isinstance(event, JobEnded) and event.error):
                yield event


class Broken(ExecutorConformance):
    def __init__(self, wrapper, name):
        self.wrapper, self.name = wrapper, name

    @contextmanager
    def executor(self, folder):
        with super().executor(folder) as executor:
            yield self.wrapper(executor)


def test_the_kit_catches_an_executor_that_ends_a_job_twice(tmp_path):
    kit = Broken(EndsTwice, "local")
    with pytest.raises(AssertionError, match="a second JobEnded"):
        kit.test_every_job_gives_its_results_and_ends_exactly_once(tmp_path)


def test_the_kit_catches_an_executor_that_drops_the_error_of_a_dead_worker(tmp_path):
    kit = Broken(DropsErrors, "processes")
    with pytest.raises(AssertionError, match="no JobEnded"):
        kit.test_a_worker_that_dies_ends_its_job_and_no_other(tmp_path)


def test_the_kit_accepts_a_wrapped_executor_that_is_correct(tmp_path):
    Broken(Wrapped, "local").test_every_job_gives_its_results_and_ends_exactly_once(tmp_path)


# ---------------------------------------------------------------------------- worker processes


@contextmanager
def opened(name, folder, slots=({},), **options):
    spec = installed().find("executor", f"executors/{name}").spec
    setup = tiny_registry().setup.model_dump_json()
    context = StudyExecutorContext(folder=folder, plugins=setup, live={}, slots=list(slots))
    executor = spec.build(spec.options.model_validate(options), context)
    try:
        yield executor
    finally:
        executor.close()


def outcomes(executor, jobs, timeout=120.0):
    for job in jobs:
        executor.submit(job)
    return read(executor, jobs, timeout)


def read(executor, jobs, timeout=120.0):
    by_job = {job.id: Outcome() for job in jobs}
    job_of = {run.id: job.id for job in jobs for run in job.runs}
    for event in executor.events(timeout):
        if isinstance(event, RunResult):
            by_job[job_of[event.id]].results.append(event)
        elif isinstance(event, JobEnded):
            by_job[event.job].error = event.error
    return [by_job[job.id] for job in jobs]


def wait_until(is_true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_the_error_describes_how_a_worker_ended_and_the_next_job_gets_a_new_worker(tmp_path):
    leave = "import os, sys; print('the disk is full', file=sys.stderr, flush=True); os._exit(3)"
    crash = "import ctypes; ctypes.string_at(0)"
    jobs = tiny_jobs(DIE, leave, crash, LEARN)
    with opened("processes", tmp_path) as executor:
        killed, exited, crashed, learned = outcomes(executor, jobs)
    assert killed.error == "killed by SIGKILL"
    assert exited.error == "exited with status 3: the disk is full"
    assert crashed.error.startswith("killed by SIGSEGV: Fatal Python error: Segmentation fault")
    assert learned.error is None
    assert learned.results[0].status == "completed"


def test_the_error_quotes_the_last_output_of_a_worker_in_complete_lines(tmp_path):
    leave = "import os, sys; print('line of words\\n' * 2000, file=sys.stderr, flush=True); os._exit(3)"
    with opened("processes", tmp_path) as executor:
        (exited,) = outcomes(executor, tiny_jobs(leave))
    quoted = exited.error.removeprefix("exited with status 3: ").splitlines()
    assert set(quoted) == {"line of words"}
    assert 100 < len(quoted) < 2000


def test_user_code_reaches_neither_the_pipes_nor_the_terminal_and_a_worker_is_reused(tmp_path):
    noisy = "import os, sys; print('hello' * 9999); os.write(1, b'low-level'); assert sys.stdin.read() == ''"
    jobs = tiny_jobs(traced(noisy, tmp_path / "trace"), traced(LEARN, tmp_path / "trace"))
    with opened("processes", tmp_path) as executor:
        noisy_outcome, quiet_outcome = outcomes(executor, jobs)
    assert noisy_outcome.results[0].status == quiet_outcome.results[0].status == "completed"
    log = (tmp_path / "logs" / "worker-0.log").read_text()
    assert "hello" in log
    assert "low-level" in log
    pids = (tmp_path / "trace").read_text().splitlines()
    assert len(pids) == 2
    assert len(set(pids)) == 1


def test_a_worker_has_the_environment_of_its_slot_and_the_number_of_threads_of_the_option(tmp_path):
    seen = tmp_path / "seen"
    # Each job waits for the other, so that each worker trains one.
    look = f"""
import os, time, torch
with open({str(seen)!r}, "a") as file:
    file.write(f"{{os.environ['PLACE']}} {{torch.get_num_threads()}} {{os.environ['OMP_NUM_THREADS']}}\\n")
while len(open({str(seen)!r}).readlines()) < 2:
    time.sleep(0.1)
raise RuntimeError("seen enough")
"""
    with opened("processes", tmp_path, [{"PLACE": "left"}, {"PLACE": "right"}], threads=2) as executor:
        assert executor.capacity == 2
        outcomes(executor, tiny_jobs(look, look))
    assert sorted(seen.read_text().splitlines()) == ["left 2 2", "right 2 2"]


def test_there_are_no_more_workers_than_jobs(tmp_path):
    with opened("processes", tmp_path, workers=3) as executor:
        assert executor.capacity == 3
        assert not (tmp_path / "logs").exists()
        executor.submit(*tiny_jobs(LEARN))
    assert [log.name for log in (tmp_path / "logs").iterdir()] == ["worker-0.log"]


NO_PYTHON = {"PYTHONHASHSEED": "nonsense"}
"""An environment in which Python does not start."""


def test_workers_that_cannot_start_end_the_jobs_with_an_error(tmp_path):
    jobs = tiny_jobs(LEARN, LEARN, LEARN)
    with opened("processes", tmp_path, [NO_PYTHON]) as executor:
        for outcome in outcomes(executor, jobs):
            assert outcome.error.startswith("no worker could be started: exited with status 1: ")
            assert "PYTHONHASHSEED must be" in outcome.error
        assert outcomes(executor, jobs[:1])[0].error


def test_if_no_worker_starts_in_a_slot_the_other_workers_train_its_jobs(tmp_path):
    jobs = tiny_jobs(*[LEARN] * 4)
    with opened("processes", tmp_path, [NO_PYTHON, {}]) as executor:
        finished = outcomes(executor, jobs)
    assert [outcome.results[0].status for outcome in finished] == ["completed"] * 4


def test_a_study_folder_that_cannot_be_written_ends_the_jobs_with_an_error(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with opened("processes", tmp_path) as executor:
        (outcome,) = outcomes(executor, tiny_jobs(LEARN))
    assert "File exists" in outcome.error


def test_a_subprocess_dies_with_its_worker_and_does_not_hide_the_workers_death(tmp_path):
    # A forked child inherits the open pipes of its parent.
    child = tmp_path / "child"
    fork = f"""
import os, time
if (pid := os.fork()) == 0:
    time.sleep(3600)
with open({str(child)!r}, "w") as file:
    file.write(str(pid))
{DIE}
"""
    with opened("processes", tmp_path) as executor:
        (outcome,) = outcomes(executor, tiny_jobs(fork))
    assert outcome.error == "killed by SIGKILL"
    wait_until(lambda: not is_running(int(child.read_text())), seconds=10)


def test_a_worker_ignores_ctrl_c(tmp_path):
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    with opened("processes", tmp_path) as executor:
        (outcome,) = outcomes(executor, tiny_jobs(interrupt))
    assert outcome.results[0].status == "completed"


@pytest.mark.parametrize("name", ["local", "processes"])
def test_closing_stops_the_running_job_between_two_steps_and_ends_waiting_jobs(tmp_path, name):
    stopped = "import time; time.sleep(0.05)"
    running, waiting = jobs = tiny_jobs(traced(stopped, tmp_path / "trace"), LEARN)
    with opened(name, tmp_path) as executor:
        for job in jobs:
            executor.submit(job)
        for _ in executor.events(60.0):
            break
        executor.close()
        first, second = read(executor, jobs)
        assert (first.results, first.error) == ([], None)
        assert (second.results, second.error) == ([], "the executor was closed")
        assert list(executor.events(60.0)) == []
        with pytest.raises(RuntimeError, match="closed"):
            executor.submit(running)
        assert waiting.id


@pytest.mark.parametrize("name", ["local", "processes"])
def test_a_job_that_has_not_ended_cannot_be_submitted_again(tmp_path, name):
    (job,) = tiny_jobs(CRAWL)
    with opened(name, tmp_path) as executor:
        executor.submit(job)
        with pytest.raises(ValueError, match="is submitted already"):
            executor.submit(job)


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from flops_fit_core import Job
from test_executors import opened

folder = Path({folder!r})
with opened("processes", folder) as executor:
    executor.submit(Job.model_validate_json((folder / "job.json").read_text()))
    list(executor.events(600.0))
"""


def test_workers_do_not_outlive_a_driver_that_is_killed(tmp_path):
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(traced(HANG, trace))
    (tmp_path / "job.json").write_text(job.model_dump_json())
    source = DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", source], start_new_session=True) as driver:
        try:
            wait_until(lambda: trace.exists() and trace.read_text().endswith("\n"))
            worker = int(trace.read_text().split()[1])
            assert is_running(worker)
        finally:
            driver.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(worker), seconds=10)


def test_a_worker_exits_in_the_middle_of_a_job_when_its_standard_input_ends(tmp_path):
    """The driver stays alive here, so that Linux does not kill the worker."""
    from flops_fit_executors.messages import Kind, write

    trace = tmp_path / "trace"
    (job,) = tiny_jobs(traced(HANG, trace))
    setup = tiny_registry().setup.model_dump_json()
    context = StudyExecutorContext(folder=tmp_path, plugins=setup, live={}, slots=[{}])
    worker = subprocess.Popen(
        [sys.executable, "-m", "flops_fit_executors.worker"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    write(worker.stdin, Kind.RUNNER, pickle.dumps(context.runner))
    write(worker.stdin, Kind.JOB, job.model_dump_json().encode())
    wait_until(trace.exists)
    worker.stdin.close()
    assert worker.wait(timeout=10) == 1


# ---------------------------------------------------------------------------- in process


def test_in_process_a_job_that_exits_does_not_end_the_driver(tmp_path):
    jobs = tiny_jobs("raise SystemExit(3)", LEARN)
    with opened("local", tmp_path) as executor:
        exited, learned = outcomes(executor, jobs)
    assert exited.results[0].status == "failed"
    assert exited.results[0].error.type == "SystemExit"
    assert learned.results[0].status == "completed"


def test_in_process_a_plugin_setup_that_cannot_be_read_ends_the_job_with_an_error(tmp_path):
    spec = installed().find("executor", "executors/local").spec
    context = StudyExecutorContext(folder=tmp_path, plugins="{not json", live={}, slots=[{}])
    executor = spec.build(spec.options(), context)
    (outcome,) = outcomes(executor, tiny_jobs(LEARN))
    assert outcome.error.startswith("ValidationError: ")


def test_in_process_the_number_of_threads_is_set_and_restored(tmp_path):
    import torch

    before = torch.get_num_threads()
    seen = tmp_path / "seen"
    with opened("local", tmp_path, threads=before + 1) as executor:
        look = f"import torch, pathlib; pathlib.Path({str(seen)!r}).write_text(str(torch.get_num_threads()))"
        look += "; raise RuntimeError('seen enough')"
        outcomes(executor, tiny_jobs(look))
    assert seen.read_text() == str(before + 1)
    assert torch.get_num_threads() == before


def test_in_process_ctrl_c_reaches_the_driver_and_ends_the_job(tmp_path):
    (job,) = tiny_jobs("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    with opened("local", tmp_path) as executor:
        executor.submit(job)
        with pytest.raises(KeyboardInterrupt):
            list(executor.events(60.0))
        (outcome,) = read(executor, [job])
        assert outcome.error.startswith("KeyboardInterrupt")


# ---------------------------------------------------------------------------- several devices


def on_devices(job, number):
    trajectories = []
    for trajectory in job.trajectories:
        runs = tuple(run.model_copy(update={"devices": number}) for run in trajectory.runs)
        trajectories.append(trajectory.model_copy(update={"runs": runs}))
    return job.model_copy(update={"trajectories": tuple(trajectories)})


@pytest.mark.slow
def test_a_job_on_several_devices_has_their_slots_to_itself_between_two_other_jobs(tmp_path):
    seen = tmp_path / "seen"
    look = f"import os; open({str(seen)!r}, 'a').write(os.environ['SLOT'] + chr(10)) if step == 0 else None"
    single, double, last = tiny_jobs(look, look, look)
    slots = [{"SLOT": "first"}, {"SLOT": "second"}]
    with opened("processes", tmp_path, slots=slots) as executor:
        finished = outcomes(executor, [single, on_devices(double, 2), last])
    assert [outcome.error for outcome in finished] == [None, None, None]
    assert [result.status for outcome in finished for result in outcome.results] == ["completed"] * 3
    slots_seen = seen.read_text().split()
    assert slots_seen.count("first,second") == 2, "both processes of the run see both slots"
    assert len(slots_seen) == 4


def test_a_job_that_needs_more_gpus_than_available_ends_at_once_with_an_error(tmp_path):
    large, small = tiny_jobs(LEARN, LEARN)
    slots = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    with opened("processes", tmp_path, slots=slots, workers=4) as executor:
        rejected, trained = outcomes(executor, [on_devices(large, 4), small])
    assert (rejected.results, rejected.error) == ([], "each run needs 4 GPUs, and 2 are available")
    assert trained.error is None


def test_a_run_on_several_gpus_gets_one_slot_per_gpu(tmp_path):
    slots = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    with opened("processes", tmp_path, slots=slots, workers=4) as executor:
        assert executor._free_slots(1) == [0, 1, 2, 3]
        assert executor._free_slots(2) == [0, 1]


def test_the_environment_of_several_slots_joins_their_cuda_devices_by_commas():
    from flops_fit_executors.worker_process import environment

    two_gpus = environment([{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}], 1)
    assert two_gpus["CUDA_VISIBLE_DEVICES"] == "2,5"
    no_gpu = environment([{"CUDA_VISIBLE_DEVICES": ""}] * 2, 1)
    assert no_gpu["CUDA_VISIBLE_DEVICES"] == ""


def test_a_run_resumes_from_its_checkpoint_in_the_same_sweep_after_its_worker_is_killed(tmp_path):
    flag, trace = tmp_path / "flag", tmp_path / "trace"
    die_once = f"""
import os, signal, time
with open({str(trace)!r}, "a") as file:
    file.write("step\\n")
if step == 60 and not os.path.exists({str(flag)!r}):
    open({str(flag)!r}, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
if step < 60:
    time.sleep(0.01)
"""

    def table(code):
        return {
            "sweep": {"budgets": [500_000], "sizes": [{"width": 4, "code": code}], "batch_size": 8},
            "model": "tiny/tiny",
            "dataset": "tiny/majority",
            "optimizer": "tiny/plain",
            "trainer": {"name": "trainers/torch", "eval_tokens": 256, "checkpoint_minutes": 0.001},
            "device": "cpu",
            "executor": {"name": "processes", "workers": 1},
        }

    study = plan(table(die_once), registry=tiny_registry(), out=tmp_path / "killed")
    (result,) = study.train()
    assert (result.status, result.attempt) == ("completed", 2)
    with study.store() as store:
        first, _ = store.attempts(result.id)
    assert (first.status, first.error.message) == ("failed", "killed by SIGKILL")
    steps, trained = result.run.steps, len(trace.read_text().splitlines())
    assert steps < trained < steps + 60, "steps before the last checkpoint are not trained again"
    (uninterrupted,) = plan(table(LEARN), registry=tiny_registry(), out=tmp_path / "uninterrupted").train()
    assert result.loss == uninterrupted.loss


# ---------------------------------------------------------------------------- living jobs


def test_a_job_is_alive_until_its_process_has_ended_even_if_no_event_is_read(tmp_path):
    trace = tmp_path / "trace"
    running, waiting = tiny_jobs(traced(HANG, trace), LEARN)
    with opened("processes", tmp_path, workers=1) as executor:
        executor.submit(running)
        executor.submit(waiting)
        wait_until(lambda: read(executor, [], timeout=0.1) is not None and trace.exists())
        assert executor.is_alive(running.id)
        assert executor.is_alive(waiting.id)
        os.kill(int(trace.read_text().split()[1]), signal.SIGKILL)
        wait_until(lambda: not executor.is_alive(running.id))
        assert executor.is_alive(waiting.id)


def test_the_timeout_of_a_run_includes_the_grace_period_of_its_trainer():
    from flops_fit_executors.in_process import LATE_SECONDS, seconds_per_run

    (job,) = tiny_jobs(LEARN)
    timed = job.model_copy(update={"runtime": {"trainer": {"timeout_minutes": 2.0, "grace_period": 5.0}}})
    assert seconds_per_run(job) == float("inf")
    assert seconds_per_run(timed) == 2 * 60 + 5 + LATE_SECONDS


@pytest.mark.parametrize(("minutes", "expected"), [(None, True), (0.1 / 60, False)])
def test_in_process_a_run_that_hangs_is_dead_after_the_timeout_that_its_trainer_states(
    monkeypatch, minutes, expected
):
    from flops_fit_executors import in_process

    monkeypatch.setattr(in_process, "LATE_SECONDS", 0.2)
    (job,) = tiny_jobs(LEARN)
    options = {} if minutes is None else {"trainer": {"timeout_minutes": minutes}}
    alive = []

    def hang(should_stop):
        time.sleep(1.5)
        yield from ()

    def look():
        wait_until(lambda: executor._running is not None)
        alive.append(executor.is_alive(job.id))
        time.sleep(1.0)
        alive.append(executor.is_alive(job.id))

    executor = in_process.InProcessExecutor(SimpleNamespace(task=lambda job: hang), threads=1)
    thread = threading.Thread(target=look)
    thread.start()
    executor.submit(job.model_copy(update={"runtime": options}))
    assert [event.job for event in executor.events(0.1)] == [job.id]
    thread.join()
    executor.close()
    assert alive == [True, expected]
