"""What an executor receives: tasks, which are pickled, and commands, which are run by schedulers."""

import json
import pickle
import signal
import subprocess
import sys
import time

import pytest
from small import Bench

from flops_fit_core import ConfigError, RunResult, plan
from flops_fit_core.plugins import Outbox, QueuedJobReader, QueuedJobs
from flops_fit_core.testing.executors import LEARN, tiny_jobs, tiny_registry, traced, train_in_process
from flops_fit_core.training.executor_context import StudyExecutorContext

CRAWL = "import time; time.sleep(0.02)"


def context_of(folder, registry=None):
    registry = registry or tiny_registry()
    setup = registry.setup.model_dump_json()
    return StudyExecutorContext(folder=folder, plugins=setup, live=registry.objects, slots=[{}])


def results(events):
    return [event for event in events if isinstance(event, RunResult)]


# ---------------------------------------------------------------------------- tasks

OTHER_PROCESS = """
import json, pickle, sys

task = pickle.load(sys.stdin.buffer)
heavy = {"torch", "small"} & set(sys.modules)
from flops_fit_core import RunResult
(result,) = [event for event in task(lambda: False) if isinstance(event, RunResult)]
print(json.dumps([sorted(heavy), result.status, result.loss]))
"""


def test_a_pickled_task_trains_in_another_process_and_imports_torch_when_it_is_called(tmp_path):
    (job,) = tiny_jobs(LEARN)
    blob = pickle.dumps(context_of(tmp_path / "there").task(job))
    process = subprocess.run([sys.executable, "-c", OTHER_PROCESS], input=blob, capture_output=True, check=True)
    assert json.loads(process.stdout) == [[], "completed", train_in_process(job, tmp_path / "here").loss]


def test_a_pickled_task_carries_python_objects(tmp_path):
    bench = Bench()
    study = plan(bench.table(), registry=bench.registry(), out=tmp_path / "study")
    job, *_ = study.plan.jobs({run.id for run in study.plan.runs})
    task = context_of(tmp_path, bench.registry()).task(job)
    here = results(task())
    remote = results(pickle.loads(pickle.dumps(task))())
    assert [result.loss for result in remote] == [result.loss for result in here]
    assert {result.status for result in remote} == {"completed"}


def test_a_task_that_cannot_be_pickled_is_an_error_that_names_the_way_out(tmp_path):
    (job,) = tiny_jobs(LEARN)
    context = StudyExecutorContext(folder=tmp_path, plugins="{}", live={"inline": sys.stdout}, slots=[{}])
    for unpicklable in (context.task(job), context.runner):
        with pytest.raises(ConfigError, match=r"cannot be sent to a worker process.*executor = .local."):
            pickle.dumps(unpicklable)


# ---------------------------------------------------------------------------- commands


def test_a_command_trains_its_job_and_the_driver_reads_each_event_once(tmp_path):
    (job,) = tiny_jobs(CRAWL)
    argv = context_of(tmp_path).command(job)
    jobs = QueuedJobs(tmp_path)
    reader = QueuedJobReader(jobs, jobs.set_scheduler_id(job.id, "1234"))
    events = []
    with subprocess.Popen(argv) as process:
        while process.poll() is None:
            events += reader.read()
            time.sleep(0.05)
        assert process.returncode == 0
    events += reader.read()
    assert reader.read() == reader.read_outbox() == []
    (result,) = results(events)
    assert result.loss == train_in_process(job, tmp_path / "here").loss
    assert len(events) > 1, "progress came before the result"
    assert (reader.missing, reader.state.ended, reader.state.error) == (set(), True, None)
    assert [queued.scheduler_id for queued in jobs.all()] == ["1234"]
    jobs.remove(job.id)
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_command_that_gets_sigterm_exits_with_75_and_continues_when_it_is_run_again(tmp_path):
    trace = tmp_path / "trace"
    done, job = tiny_jobs(LEARN, f"open({str(trace)!r}, 'a').write('step ')\n{CRAWL}")
    job = job.model_copy(update={"trajectories": done.trajectories + job.trajectories})
    argv = context_of(tmp_path).command(job)
    with subprocess.Popen(argv) as process:
        deadline = time.monotonic() + 60
        while not trace.exists() or trace.stat().st_size < 100:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
    Outbox(tmp_path).remove(job.runs[0].id)  # as a driver does that has stored the result
    (queued,) = QueuedJobs(tmp_path).all()
    assert QueuedJobs(tmp_path).remaining(queued).runs == job.runs[1:]
    subprocess.run(argv, check=True, timeout=120)
    assert [result.id for result in Outbox(tmp_path).results()] == [job.runs[1].id]
    assert len(trace.read_text().split()) == job.runs[1].steps, "a step was trained twice, or never"


def test_a_job_that_cannot_be_trained_ends_with_its_error_and_status_1(tmp_path):
    (job,) = tiny_jobs(LEARN)
    context = StudyExecutorContext(folder=tmp_path, plugins="{not json", live={}, slots=[{}])
    assert subprocess.run(context.command(job), stderr=subprocess.DEVNULL, check=False).returncode == 1
    jobs = QueuedJobs(tmp_path)
    state = jobs.state(jobs.all()[0])
    assert state.ended
    assert state.error.startswith("ValidationError: ")


@pytest.mark.parametrize("change", ["plugins", "job"])
def test_a_command_refuses_a_job_file_that_was_changed_after_its_submission(tmp_path, change):
    (job,) = tiny_jobs(LEARN)
    argv = context_of(tmp_path).command(job)
    (tmp_path / "intruder.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    file = tmp_path / "jobs" / f"{job.id}.json"
    content = json.loads(file.read_text())
    content.pop("sha256", None)
    if change == "plugins":
        setup = {"modules": {"intruder": "intruder"}, "paths": [str(tmp_path)]}
        content["plugins"] = json.dumps({**json.loads(content["plugins"]), **setup})
    else:
        content["job"]["trajectories"][0]["runs"][0]["trainer"] = {
            "name": "trainers/command",
            "options": {"command": f"touch {tmp_path / 'executed'}"},
        }
    file.write_text(json.dumps(content))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "has changed since it was submitted" in done.stderr
    assert not (tmp_path / "executed").exists()
    jobs = QueuedJobs(tmp_path)
    assert "has changed" in jobs.state(jobs.all()[0]).error


def test_the_id_in_a_job_file_names_no_other_file(tmp_path):
    (job,) = tiny_jobs(LEARN)
    context_of(tmp_path).command(job)
    (file,) = (tmp_path / "jobs").glob("*.json")
    content = json.loads(file.read_text())
    content.pop("sha256", None)
    content["job"]["id"] = "../precious"
    file.write_text(json.dumps(content))
    assert QueuedJobs(tmp_path).all() == []


@pytest.mark.parametrize("take_back", ["submit again", pytest.param("remove", marks=pytest.mark.slow)])
def test_a_command_stops_when_the_driver_takes_its_job_back(tmp_path, take_back):
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(traced("import time; time.sleep(0.3)", trace))
    context = context_of(tmp_path)
    with subprocess.Popen(context.command(job)) as process:
        deadline = time.monotonic() + 60
        while not trace.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if take_back == "remove":
            QueuedJobs(tmp_path).remove(job.id)
        else:
            context.command(job)
        assert process.wait(timeout=60) == 75
    assert Outbox(tmp_path).results() == []
    assert list((tmp_path / "jobs").glob("*.state.json")) == []


def test_a_command_refuses_python_objects_and_writes_nothing(tmp_path):
    (job,) = tiny_jobs(LEARN)
    context = StudyExecutorContext(folder=tmp_path, plugins="{}", live={"inline": object()}, slots=[{}])
    with pytest.raises(ConfigError, match=r"inline.*-p MODULE"):
        context.command(job)
    assert list(tmp_path.iterdir()) == []
