"""The executor ``slurm`` on a real Slurm cluster of one node, which the tests start and stop."""

from __future__ import annotations

import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from slurm_cluster import Cluster, cluster, missing_requirement, wait_until

import flops_fit_core
from flops_fit_core import ConfigError, Job, Progress, RunResult
from flops_fit_core.plugins import JobEnded, Outbox, QueuedJobs
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing import ExecutorConformance
from flops_fit_core.testing.executors import LEARN, tiny_jobs, tiny_registry, traced
from flops_fit_core.training import TrajectoryFolder
from flops_fit_core.training.executor_context import StudyExecutorContext
from flops_fit_executors.slurm_start import load_private_pickle, private_folder

MISSING = missing_requirement()
ON_SLURM = [
    pytest.mark.slurm,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.usefixtures("on_the_cluster"),
]
QUICK = {"poll": 0.5, "memory": "1G"}


def on_slurm(test: Callable[..., None]) -> Callable[..., None]:
    for mark in ON_SLURM:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("submitit")
    with cluster(tmp_path_factory.mktemp("slurm")) as up:
        yield up


@pytest.fixture
def on_the_cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    yield running
    # A job leaves the queue shortly after it has written that it ended.
    wait_until(lambda: not running.queue(), "an empty queue")


class TestSlurm(ExecutorConformance):
    pytestmark = ON_SLURM
    name = "slurm"
    daemons_take = 10.0
    options = {**QUICK, "max_jobs": 2}


# ---------------------------------------------------------------------------- helpers


def build(folder: Path, **options: Any) -> Any:
    spec = installed().find("executor", "executors/slurm").spec
    setup = tiny_registry().setup.model_dump_json()
    context = StudyExecutorContext(folder=folder, plugins=setup, live={}, slots=[{}])
    return spec.build(spec.options.model_validate({**QUICK, **options}), context)


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[Any]:
    executor = build(folder, **options)
    try:
        yield executor
    finally:
        executor.close()


def counting(trace: Path, code: str = "") -> str:
    """Code that first appends a line to the file ``trace`` at every step: process id and step."""
    return f"""
import os
with open({str(trace)!r}, "a") as file:
    file.write(f"{{os.getpid()}} {{step}}\\n")
{code}
"""


def lines(trace: Path) -> list[str]:
    return trace.read_text().splitlines() if trace.exists() else []


def processes(trace: Path) -> int:
    return len({line.split()[0] for line in lines(trace)})


def read_until(executor: Any, is_true: Callable[[], bool], seconds: float = 60.0) -> list[Any]:
    """Events until a condition holds."""
    events: list[Any] = []
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "timed out"
        events += executor.events(0.2)
    return events


def results(events: list[Any]) -> list[RunResult]:
    return [event for event in events if isinstance(event, RunResult)]


def errors(events: list[Any]) -> list[str | None]:
    return [event.error for event in events if isinstance(event, JobEnded)]


def arrays(folder: Path) -> int:
    """Number of sbatch calls."""
    return len(list((folder / "slurm" / "logs").glob("*_submission.sh")))


def study(**tables: Any) -> dict[str, Any]:
    return {
        "sweep": {"budgets": [500_000, 900_000], "sizes": [{"width": 4}, {"width": 6}], "batch_size": 8},
        "model": "tiny/tiny",
        "dataset": "tiny/majority",
        "optimizer": "tiny/plain",
        "trainer": {"name": "trainers/torch", "eval_tokens": 256},
        "device": "devices/cpu",
        **tables,
    }


# ---------------------------------------------------------------------------- one sweep


@on_slurm
def test_a_sweep_has_the_ids_and_the_losses_of_a_local_one_from_a_single_sbatch(tmp_path: Path) -> None:
    slurm = {"name": "slurm", **QUICK}
    local = flops_fit_core.run(study(executor="local"), registry=tiny_registry(), out=tmp_path / "local")
    on_cluster = flops_fit_core.run(study(executor=slurm), registry=tiny_registry(), out=tmp_path / "slurm")
    assert len(local.results) == 4
    assert [(result.id, result.status, result.loss) for result in on_cluster.results] == [
        (result.id, "completed", result.loss) for result in local.results
    ]
    assert arrays(tmp_path / "slurm") == 1
    assert list((tmp_path / "slurm" / "outbox").glob("*")) == []
    assert list((tmp_path / "slurm" / "jobs").glob("*")) == []


# ---------------------------------------------------------------------------- drivers that exit

DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from flops_fit_core import Job
from test_slurm import build

folder = Path({folder!r})
executor = build(folder)
for file in sorted(folder.glob("*.job")):
    executor.submit(Job.model_validate_json(file.read_text()))
list(executor.events(600.0))
"""


@contextmanager
def driver_of(folder: Path, jobs: list[Job]) -> Iterator[subprocess.Popen[bytes]]:
    for number, job in enumerate(jobs):
        (folder / f"{number}.job").write_text(job.model_dump_json())
    source = DRIVER.format(tests=str(Path(__file__).parent), folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", source], start_new_session=True) as driver:
        try:
            yield driver
        finally:
            driver.kill()


@on_slurm
def test_jobs_continue_after_their_driver_is_killed_and_the_next_driver_finds_them(tmp_path: Path) -> None:
    traces = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    gate = tmp_path / "gate"
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)"
    codes = [counting(traces[0]), counting(traces[1], wait), counting(traces[2])]
    jobs = tiny_jobs(*codes)
    with driver_of(tmp_path, jobs[:2]) as driver:
        wait_until(lambda: bool(lines(traces[0]) and lines(traces[1])), "both jobs")
        driver.send_signal(signal.SIGKILL)
    wait_until(lambda: any((tmp_path / "outbox").glob("*")), "the first result, without a driver")
    with opened(tmp_path) as executor:
        for job in jobs:
            executor.submit(job)
        events = read_until(executor, lambda: bool(lines(traces[2])))
        gate.touch()
        events += executor.events(60.0)
    assert sorted(result.id for result in results(events)) == sorted(job.runs[0].id for job in jobs)
    assert {result.status for result in results(events)} == {"completed"}
    assert errors(events) == [None] * 3
    assert [processes(trace) for trace in traces] == [1, 1, 1], "a job was trained by more than one process"
    assert arrays(tmp_path) == 2, "one of the first driver, and one for the third job"


@on_slurm
@pytest.mark.slow
def test_a_queued_job_that_trains_the_same_runs_differently_is_cancelled(tmp_path: Path) -> None:
    """This happens if a failed run is retried while other runs of its job continue."""
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(traced("if step == 0: import time; time.sleep(2)", trace))
    retry = job.model_copy(update={"attempts": {job.runs[0].id: 2}})
    with opened(tmp_path, keep_jobs=True) as executor:
        executor.submit(job)
        read_until(executor, trace.exists)
    with opened(tmp_path) as executor:
        executor.submit(retry)
        events = list(executor.events(60.0))
    assert [(result.attempt, result.status) for result in results(events)] == [(2, "completed")]
    assert len(lines(trace)) == 2


def with_tokens(job: Job, folder: Path, token: str) -> Job:
    """The job as a driver submits it that has claimed its run and its trajectory with this token."""
    (trajectory,) = job.trajectories
    TrajectoryFolder(folder, trajectory.id, token).take()
    return job.model_copy(update={"claim_tokens": dict.fromkeys([trajectory.id, job.runs[0].id], token)})


@on_slurm
@pytest.mark.parametrize("stop", ["cancel", pytest.param("close", marks=pytest.mark.slow)])
def test_a_driver_that_was_paused_stops_no_job_that_the_next_driver_has_taken_over(
    tmp_path: Path, stop: str
) -> None:
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(counting(trace, "import time; time.sleep(0.02)"))
    with opened(tmp_path) as paused, opened(tmp_path) as executor:
        paused.submit(with_tokens(job, tmp_path, "first"))
        read_until(paused, trace.exists)
        executor.submit(with_tokens(job, tmp_path, "second"))
        if stop == "cancel":
            paused.cancel(job.id)
            ended = errors(list(paused.events(1.0)))
        else:
            paused.close()
            ended = errors(list(paused.events(0)))
        assert ended == ["another driver has taken the job over"]
        assert executor.is_alive(job.id)
        events = list(executor.events(60.0))
        (result,) = results(events)
        assert (result.status, errors(events)) == ("completed", [None])
    assert processes(trace) == 1
    assert len(lines(trace)) == job.runs[0].steps, "a step was trained twice, or never"
    assert TrajectoryFolder(tmp_path, job.trajectories[0].id, "first").forget_latest() == 0
    assert [entry.token for entry in Outbox(tmp_path).entries()] == ["first"], "the token of the worker"


@on_slurm
@pytest.mark.slow
def test_closing_lets_a_job_write_its_checkpoint_and_the_next_driver_resumes_from_it(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(counting(trace, "import time; time.sleep(0.02)"))
    with opened(tmp_path) as executor:
        executor.submit(job)
        events = read_until(executor, lambda: len(lines(trace)) > 20)
        began = time.monotonic()
        executor.close()
        assert time.monotonic() - began < 10
        assert [*errors(events), *errors(list(executor.events(1.0)))] == ["the executor was closed"]
    assert len(lines(trace)) < job.runs[0].steps
    with opened(tmp_path) as executor:
        executor.submit(job)
        events = list(executor.events(60.0))
    assert [result.status for result in results(events)] == ["completed"]
    assert [event for event in events if isinstance(event, Progress)], "no progress was reported"
    assert len(lines(trace)) == job.runs[0].steps, "a step was trained twice, or never"
    assert processes(trace) == 2


# ---------------------------------------------------------------------------- jobs that fail


@on_slurm
@pytest.mark.slow
def test_the_error_of_a_job_that_never_started_training_quotes_its_standard_error(tmp_path: Path) -> None:
    with opened(tmp_path, setup=["echo no such module >&2", "exit 3"]) as executor:
        (job,) = tiny_jobs(LEARN)
        executor.submit(job)
        began = time.monotonic()
        (event,) = executor.events(60.0)
    assert time.monotonic() - began < 60
    assert event.error.endswith("is FAILED: no such module")


@on_slurm
def test_a_submission_that_sbatch_rejects_is_a_configuration_error(tmp_path: Path) -> None:
    with opened(tmp_path, partition="nowhere") as executor:
        executor.submit(*tiny_jobs(LEARN))
        with pytest.raises(ConfigError, match="invalid partition specified: nowhere"):
            list(executor.events(10.0))
    assert list((tmp_path / "jobs").glob("*")) == []


# ---------------------------------------------------------------------------- requeued


def check_requeue(up: Cluster, folder: Path, trace: Path, interrupt: Callable[[str], object]) -> None:
    """Interrupt a job in the middle: it is requeued and resumes, and no step is lost or trained twice."""
    (job,) = tiny_jobs(counting(trace, "import time; time.sleep(0.05)"))
    with opened(folder) as executor:
        executor.submit(job)
        events = read_until(executor, lambda: len(lines(trace)) > 20)
        (slurm_id,) = up.queue()
        interrupt(slurm_id)
        events += read_until(executor, lambda: up.queue().get(slurm_id) == "PENDING")
        assert len(lines(trace)) < job.runs[0].steps
        up.start_now(slurm_id)
        events += executor.events(60.0)
    assert errors(events) == [None]
    assert [result.status for result in results(events)] == ["completed"]
    assert len(lines(trace)) == job.runs[0].steps, "a step was trained twice, or never"
    assert processes(trace) == 2


@on_slurm
@pytest.mark.slow
def test_a_job_near_its_time_limit_writes_a_checkpoint_and_is_requeued(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    def interrupt(slurm_id: str) -> None:
        on_the_cluster.command("scancel", "--signal=USR2", slurm_id)

    check_requeue(on_the_cluster, tmp_path, tmp_path / "trace", interrupt)


@on_slurm
@pytest.mark.slow
def test_a_job_that_another_program_requeues_resumes_from_its_checkpoint(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    def interrupt(slurm_id: str) -> None:
        on_the_cluster.command("scontrol", "requeue", slurm_id)

    check_requeue(on_the_cluster, tmp_path, tmp_path / "trace", interrupt)


@on_slurm
@pytest.mark.slow
def test_a_job_that_gets_sigterm_and_is_not_cancelled_is_requeued(tmp_path: Path, on_the_cluster: Cluster) -> None:
    """As in the grace period before a preemption."""

    def interrupt(slurm_id: str) -> None:
        on_the_cluster.command("scancel", "--signal=TERM", slurm_id)

    check_requeue(on_the_cluster, tmp_path, tmp_path / "trace", interrupt)


@on_slurm
@pytest.mark.slow
def test_a_run_that_was_finished_before_its_job_was_requeued_is_not_trained_again(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    done, trace = tmp_path / "done", tmp_path / "trace"
    quick, slow = tiny_jobs(traced(LEARN, done), counting(trace, "import time; time.sleep(0.05)"))
    job = slow.model_copy(update={"trajectories": quick.trajectories + slow.trajectories})
    with opened(tmp_path) as executor:
        executor.submit(job)
        events = read_until(executor, lambda: len(lines(trace)) > 5)
        while not results(events):
            events += executor.events(1.0)
        assert [result.id for result in results(events)] == [quick.runs[0].id]
        (tmp_path / "outbox" / f"{quick.runs[0].id}.json").unlink()  # a sweep deletes it after storing the result
        (slurm_id,) = on_the_cluster.queue()
        on_the_cluster.command("scontrol", "requeue", slurm_id)
        read_until(executor, lambda: on_the_cluster.queue().get(slurm_id) == "PENDING")
        on_the_cluster.start_now(slurm_id)
        events = list(executor.events(60.0))
    assert [result.id for result in results(events)] == [slow.runs[0].id]
    assert len(lines(done)) == 1


@on_slurm
@pytest.mark.slow
def test_a_job_that_reached_max_requeues_ends_with_an_error(tmp_path: Path, on_the_cluster: Cluster) -> None:
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(counting(trace, "import time; time.sleep(0.05)"))
    with opened(tmp_path, max_requeues=0, time=5) as executor:
        executor.submit(job)
        events = read_until(executor, lambda: len(lines(trace)) > 5)
        (slurm_id,) = on_the_cluster.queue()
        on_the_cluster.command("scancel", "--signal=USR2", slurm_id)
        events += executor.events(60.0)
    assert errors(events) == ["UncompletedJobError: Job not requeued because: timed-out too many times."]


@on_slurm
@pytest.mark.slow
def test_a_job_longer_than_its_time_limit_is_requeued_until_it_is_done(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(counting(trace, "import time; time.sleep(0.25)"))
    events: list[Any] = []
    with opened(tmp_path, time=1, grace_period=20) as executor:
        executor.submit(job)
        while not errors(events):
            events += executor.events(1.0)
            for slurm_id, state in on_the_cluster.queue().items():
                if state == "PENDING" and lines(trace):
                    on_the_cluster.start_now(slurm_id)
    assert errors(events) == [None]
    assert [result.status for result in results(events)] == ["completed"]
    assert len(lines(trace)) == job.runs[0].steps, "a step was trained twice, or never"
    assert processes(trace) > 1


# ---------------------------------------------------------------------------- the command line

EXPERIMENT = """
device = "cpu"

[sweep]
budgets = [5e5, 9e5]
batch_size = 8
sizes = [{sizes}]

[model]
name = "tiny"

[dataset]
name = "majority"

[optimizer]
name = "plain"

[trainer]
name = "torch"
eval_tokens = 256

[executor]
name = "slurm"
memory = "1G"
poll = 0.5
"""


@on_slurm
@pytest.mark.slow
def test_the_next_run_collects_the_results_of_a_sweep_after_its_driver_is_killed(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    traces = [tmp_path / "first", tmp_path / "second"]
    codes = [counting(trace, "import time; time.sleep(0.05)") for trace in traces]
    sizes = ", ".join(
        f"{{width={width}, code={json.dumps(code)}}}" for width, code in zip((4, 6), codes, strict=True)
    )
    (tmp_path / "small.toml").write_text(EXPERIMENT.replace("{sizes}", sizes))
    words = ["run", "small.toml", "-p", "flops_fit_core.testing.tiny", "--out", "study"]
    command = [sys.executable, "-c", "from flops_fit_core.cli import main; main()", *words]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True) as driver:
        try:
            wait_until(lambda: all(len(lines(trace)) > 5 for trace in traces), "both sizes")
        finally:
            driver.send_signal(signal.SIGKILL)
    assert len(on_the_cluster.queue()) == 4
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    collected = flops_fit_core.Study.open(tmp_path / "study", tiny_registry()).results
    assert [result.status for result in collected] == ["completed"] * 4
    assert arrays(tmp_path / "study") == 1
    assert sum(len(lines(trace)) for trace in traces) == sum(result.run.steps for result in collected)


@on_slurm
@pytest.mark.parametrize("planted", ["of the other job", "--user=root"])
def test_a_job_file_that_another_user_changed_cancels_no_other_job(
    tmp_path: Path, on_the_cluster: Cluster, planted: str
) -> None:
    other = on_the_cluster.command("sbatch", "--parsable", "--wrap=sleep 60", "--output=/dev/null").strip()
    (job,) = tiny_jobs(LEARN)
    jobs = QueuedJobs(tmp_path)
    jobs.add(job, tiny_registry().setup.model_dump_json())
    jobs.set_scheduler_id(job.id, other if planted == "of the other job" else planted)
    try:
        with opened(tmp_path) as executor:
            executor.submit(job)
            assert other in on_the_cluster.queue()
            assert [event.status for event in executor.events(120.0) if isinstance(event, RunResult)] == [
                "completed"
            ]
        assert other in on_the_cluster.queue()
    finally:
        on_the_cluster.command("scancel", other)


@on_slurm
def test_a_job_does_not_load_a_pickle_that_another_user_could_have_written(tmp_path: Path) -> None:
    with opened(tmp_path) as executor:
        (job,) = tiny_jobs(LEARN)
        logs = tmp_path / "slurm" / "logs"
        assert stat.S_IMODE(logs.stat().st_mode) == 0o700
        logs.chmod(0o770)
        executor.submit(job)
        events = list(executor.events(120.0))
    assert [event for event in events if isinstance(event, RunResult)] == []
    assert "another user could have written it" in str(events[-1])


# ---------------------------------------------------------------------------- without a cluster


def opens(path: str) -> Any:
    """An object whose unpickling creates a file."""

    class Opener:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (path, "w")

    return Opener()


ATTACKS = ["open folder", "owner of the file", "owner of the folder", "link", "linked folder"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_only_a_pickle_of_this_user_in_a_private_folder_is_loaded(tmp_path: Path, attack: str) -> None:
    folder = private_folder(tmp_path / "slurm")
    file = folder / "job.pkl"
    file.write_bytes(pickle.dumps({"a": 1}))
    assert load_private_pickle(file) == {"a": 1}
    file.write_bytes(pickle.dumps(opens(str(tmp_path / "executed"))))
    if attack == "open folder":
        folder.chmod(0o730)
    elif attack == "link":
        file.rename(tmp_path / "other.pkl")
        file.symlink_to(tmp_path / "other.pkl")
    elif attack == "linked folder":
        folder.rename(tmp_path / "other")
        folder.symlink_to(tmp_path / "other")
    elif os.getuid() == 0:
        os.chown(file if attack == "owner of the file" else folder, 12345, -1)
    else:
        folder.chmod(0o777)
    with pytest.raises(OSError):
        load_private_pickle(file)
    assert not (tmp_path / "executed").exists()


def test_users_of_one_study_have_separate_folders_for_pickles(tmp_path: Path) -> None:
    first = private_folder(tmp_path)
    assert first == tmp_path / "logs" == private_folder(tmp_path)
    if os.getuid() == 0:
        os.chown(first, 12345, -1)
        assert private_folder(tmp_path) == tmp_path / "logs-0"


def test_a_link_in_the_place_of_the_folder_for_pickles_changes_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir(mode=0o755)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "logs").symlink_to(tmp_path / "public")
    own = private_folder(tmp_path / "slurm")
    assert own == tmp_path / "slurm" / f"logs-{os.getuid()}"
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o755
    own.rmdir()
    own.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="are not folders of yours"):
        private_folder(tmp_path / "slurm")


def options(**values: Any) -> Any:
    return installed().find("executor", "executors/slurm").spec.options.model_validate(values)


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(90, 90), ("1:30:00", 90), ("00:30", 30), ("2-12:00:00", 3600), ("0:00:01", 1), ("1:00:01", 61)],
)
def test_a_time_limit_is_in_minutes_or_in_slurms_format(time: int | str, minutes: int) -> None:
    assert options(time=time, grace_period=10).limit == minutes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time": "soon"}, "HH:MM:SS"),
        ({"time": "0:00"}, "the time limit is 0"),
        ({"time": 0}, "greater than 0"),
        ({"time": 1}, "must be shorter than time"),
        ({"extra": {"partition": "gpu"}}, "write executor.partition instead"),
        ({"extra": {"job-name": "mine"}}, "to find its jobs later"),
        ({"extra": {"--nice": "5"}}, "without dashes"),
        ({"max_jobs": 1001}, "1000"),
        ({"partition": "gpu\ntouch executed"}, "should match pattern"),
        ({"account": "me\rx"}, "should match pattern"),
        ({"partitoin": "gpu"}, "did you mean 'partition'"),
    ],
)
def test_an_invalid_option_is_rejected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        options(**values)


def test_python_objects_are_rejected_with_the_alternative(tmp_path: Path) -> None:
    spec = installed().find("executor", "executors/slurm").spec
    context = StudyExecutorContext(folder=tmp_path, plugins="{}", live={"inline": object()}, slots=[{}])
    with pytest.raises(ConfigError, match=r"inline.*-p MODULE"):
        spec.build(spec.options(), context)


def test_a_machine_without_slurm_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = "sbatch, srun, squeue, scancel not found: run flops-fit on a login node"
    with pytest.raises(ConfigError, match=message):
        build(tmp_path)


@on_slurm
def test_the_check_lists_the_partitions() -> None:
    spec = installed().find("executor", "executors/slurm").spec
    (partition,) = spec.check(spec.options())
    assert partition.startswith("partition ")
    assert "1 nodes, up, at most " in partition


def test_the_check_fails_on_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    spec = installed().find("executor", "executors/slurm").spec
    with pytest.raises(ConfigError, match=r"executor 'slurm': sbatch, .* not found"):
        spec.check(spec.options())
