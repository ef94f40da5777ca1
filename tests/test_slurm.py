"""The executor ``slurm`` on a real Slurm of one node, which the tests bring up and take down."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from slurm_cluster import Cluster, cluster, wait_until, why_not

import flops_fit_core
from flops_fit_core import ConfigError, Job, Progress, RunResult
from flops_fit_core.plugins import JobEnded
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing import ExecutorConformance
from flops_fit_core.testing.executors import LEARN, tiny_jobs, tiny_registry, traced
from flops_fit_core.training.executor_context import StudyExecutorContext

MISSING = why_not()
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
    # A job that has said that it ended leaves a moment later.
    wait_until(lambda: not running.queue(), "an empty queue")


class TestSlurm(ExecutorConformance):
    pytestmark = ON_SLURM
    name = "slurm"
    daemons_take = 10.0
    options = {**QUICK, "max_jobs": 2}


# ---------------------------------------------------------------------------- parts


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
    """The code, after a line in the file ``trace`` for every step: the process, and its own count of steps."""
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
    """Events until something has happened."""
    seen: list[Any] = []
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until, "waited in vain"
        seen += executor.events(0.2)
    return seen


def results(events: list[Any]) -> list[RunResult]:
    return [event for event in events if isinstance(event, RunResult)]


def errors(events: list[Any]) -> list[str | None]:
    return [event.error for event in events if isinstance(event, JobEnded)]


def arrays(folder: Path) -> int:
    """How often sbatch was called."""
    return len(list((folder / "slurm" / "logs").glob("*_submission.sh")))


def study(**more: Any) -> dict[str, Any]:
    return {
        "sweep": {"budgets": [500_000, 900_000], "sizes": [{"width": 4}, {"width": 6}], "batch_size": 8},
        "model": "tiny/tiny",
        "dataset": "tiny/majority",
        "optimizer": "tiny/plain",
        "trainer": {"name": "trainers/torch", "eval_tokens": 256},
        "device": "devices/cpu",
        **more,
    }


# ---------------------------------------------------------------------------- one sweep


@on_slurm
def test_a_sweep_has_the_ids_and_the_losses_of_a_local_one_from_a_single_sbatch(tmp_path: Path) -> None:
    slurm = {"name": "slurm", **QUICK}
    here = flops_fit_core.run(study(executor="local"), registry=tiny_registry(), out=tmp_path / "here")
    there = flops_fit_core.run(study(executor=slurm), registry=tiny_registry(), out=tmp_path / "there")
    assert len(here.results) == 4
    assert [(one.id, one.status, one.loss) for one in there.results] == [
        (one.id, "completed", one.loss) for one in here.results
    ]
    assert arrays(tmp_path / "there") == 1
    assert list((tmp_path / "there" / "outbox").glob("*")) == []
    assert list((tmp_path / "there" / "jobs").glob("*")) == []


# ---------------------------------------------------------------------------- drivers that go away

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
def test_jobs_of_a_driver_that_was_killed_go_on_and_the_next_one_finds_them(tmp_path: Path) -> None:
    traces = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    gate = tmp_path / "gate"
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)"
    codes = [counting(traces[0]), counting(traces[1], wait), counting(traces[2])]
    jobs = tiny_jobs(*codes)
    with driver_of(tmp_path, jobs[:2]) as driver:
        wait_until(lambda: bool(lines(traces[0]) and lines(traces[1])), "both jobs")
        driver.send_signal(signal.SIGKILL)
    wait_until(lambda: any((tmp_path / "outbox").glob("*")), "the first result, with no driver there")
    with opened(tmp_path) as executor:
        for job in jobs:
            executor.submit(job)
        seen = read_until(executor, lambda: bool(lines(traces[2])))
        gate.touch()
        seen += executor.events(60.0)
    assert sorted(one.id for one in results(seen)) == sorted(job.runs[0].id for job in jobs)
    assert {one.status for one in results(seen)} == {"completed"}
    assert errors(seen) == [None] * 3
    assert [processes(trace) for trace in traces] == [1, 1, 1], "a job was trained by more than one process"
    assert arrays(tmp_path) == 2, "the first driver's, and the third job's own"


@on_slurm
@pytest.mark.slow
def test_a_job_that_stands_in_the_way_of_another_is_cancelled(tmp_path: Path) -> None:
    """As when a run that failed is to be tried again while others of its job go on."""
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(traced("if step == 0: import time; time.sleep(2)", trace))
    again = job.model_copy(update={"attempts": {job.runs[0].id: 2}})
    with opened(tmp_path, keep_jobs=True) as executor:
        executor.submit(job)
        read_until(executor, trace.exists)
    with opened(tmp_path) as executor:
        executor.submit(again)
        seen = list(executor.events(60.0))
    assert [(one.attempt, one.status) for one in results(seen)] == [(2, "completed")]
    assert len(lines(trace)) == 2


@on_slurm
@pytest.mark.slow
def test_closing_lets_a_job_write_its_checkpoint_and_the_next_driver_goes_on_from_there(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(counting(trace, "import time; time.sleep(0.02)"))
    with opened(tmp_path) as executor:
        executor.submit(job)
        seen = read_until(executor, lambda: len(lines(trace)) > 20)
        began = time.monotonic()
        executor.close()
        assert time.monotonic() - began < 10
        assert [*errors(seen), *errors(list(executor.events(1.0)))] == ["the executor was closed"]
    assert len(lines(trace)) < job.runs[0].steps
    with opened(tmp_path) as executor:
        executor.submit(job)
        seen = list(executor.events(60.0))
    assert [one.status for one in results(seen)] == ["completed"]
    assert [event for event in seen if isinstance(event, Progress)], "no progress was told on the way"
    assert len(lines(trace)) == job.runs[0].steps, "a step was trained twice, or never"
    assert processes(trace) == 2


# ---------------------------------------------------------------------------- jobs that end badly


@on_slurm
@pytest.mark.slow
def test_a_job_that_never_said_a_word_ends_with_what_slurm_kept_of_it(tmp_path: Path) -> None:
    with opened(tmp_path, setup=["echo no such module >&2", "exit 3"]) as executor:
        (job,) = tiny_jobs(LEARN)
        executor.submit(job)
        began = time.monotonic()
        (event,) = executor.events(60.0)
    assert time.monotonic() - began < 60
    assert event.error.endswith("is FAILED: no such module")


@on_slurm
def test_what_sbatch_does_not_take_is_the_users_to_change(tmp_path: Path) -> None:
    with opened(tmp_path, partition="nowhere") as executor:
        executor.submit(*tiny_jobs(LEARN))
        with pytest.raises(ConfigError, match="invalid partition specified: nowhere"):
            list(executor.events(10.0))
    assert list((tmp_path / "jobs").glob("*")) == []


# ---------------------------------------------------------------------------- requeued


def requeued(up: Cluster, folder: Path, trace: Path, interrupt: Callable[[str], object]) -> None:
    """Interrupt a job in the middle: it has a second turn, at once, and nothing is lost or done twice."""
    (job,) = tiny_jobs(counting(trace, "import time; time.sleep(0.05)"))
    with opened(folder) as executor:
        executor.submit(job)
        seen = read_until(executor, lambda: len(lines(trace)) > 20)
        (slurm,) = up.queue()
        interrupt(slurm)
        seen += read_until(executor, lambda: up.queue().get(slurm) == "PENDING")
        assert len(lines(trace)) < job.runs[0].steps
        up.start_now(slurm)
        seen += executor.events(60.0)
    assert errors(seen) == [None]
    assert [one.status for one in results(seen)] == ["completed"]
    assert len(lines(trace)) == job.runs[0].steps, "a step was trained twice, or never"
    assert processes(trace) == 2


@on_slurm
@pytest.mark.slow
def test_a_job_whose_time_limit_is_near_writes_a_checkpoint_and_goes_on_in_another_turn(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    def interrupt(slurm: str) -> None:
        on_the_cluster.command("scancel", "--signal=USR2", slurm)

    requeued(on_the_cluster, tmp_path, tmp_path / "trace", interrupt)


@on_slurm
@pytest.mark.slow
def test_a_job_that_is_requeued_from_outside_goes_on_from_its_checkpoint(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    def interrupt(slurm: str) -> None:
        on_the_cluster.command("scontrol", "requeue", slurm)

    requeued(on_the_cluster, tmp_path, tmp_path / "trace", interrupt)


@on_slurm
@pytest.mark.slow
def test_a_job_that_gets_sigterm_and_is_not_cancelled_goes_back_into_the_queue(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    """As in the time of grace before a preemption."""

    def interrupt(slurm: str) -> None:
        on_the_cluster.command("scancel", "--signal=TERM", slurm)

    requeued(on_the_cluster, tmp_path, tmp_path / "trace", interrupt)


@on_slurm
@pytest.mark.slow
def test_a_run_that_was_done_before_its_job_was_requeued_is_not_trained_again(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    done, trace = tmp_path / "done", tmp_path / "trace"
    quick, slow = tiny_jobs(traced(LEARN, done), counting(trace, "import time; time.sleep(0.05)"))
    both = slow.model_copy(update={"trajectories": quick.trajectories + slow.trajectories})
    with opened(tmp_path) as executor:
        executor.submit(both)
        seen = read_until(executor, lambda: len(lines(trace)) > 5)
        while not results(seen):
            seen += executor.events(1.0)
        assert [one.id for one in results(seen)] == [quick.runs[0].id]
        (tmp_path / "outbox" / f"{quick.runs[0].id}.json").unlink()  # as a sweep does that has stored it
        (slurm,) = on_the_cluster.queue()
        on_the_cluster.command("scontrol", "requeue", slurm)
        read_until(executor, lambda: on_the_cluster.queue().get(slurm) == "PENDING")
        on_the_cluster.start_now(slurm)
        seen = list(executor.events(60.0))
    assert [one.id for one in results(seen)] == [slow.runs[0].id]
    assert len(lines(done)) == 1


@on_slurm
@pytest.mark.slow
def test_a_job_that_was_requeued_often_enough_ends_with_that_error(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(counting(trace, "import time; time.sleep(0.05)"))
    with opened(tmp_path, max_requeues=0, time=5) as executor:
        executor.submit(job)
        seen = read_until(executor, lambda: len(lines(trace)) > 5)
        (slurm,) = on_the_cluster.queue()
        on_the_cluster.command("scancel", "--signal=USR2", slurm)
        seen += executor.events(60.0)
    assert errors(seen) == ["UncompletedJobError: Job not requeued because: timed-out too many times."]


@on_slurm
@pytest.mark.slow
def test_a_job_that_needs_longer_than_its_time_limit_goes_on_by_itself(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(counting(trace, "import time; time.sleep(0.25)"))
    seen: list[Any] = []
    with opened(tmp_path, time=1, grace_period=20) as executor:
        executor.submit(job)
        while not errors(seen):
            seen += executor.events(1.0)
            for slurm, state in on_the_cluster.queue().items():
                if state == "PENDING" and lines(trace):
                    on_the_cluster.start_now(slurm)
    assert errors(seen) == [None]
    assert [one.status for one in results(seen)] == ["completed"]
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
def test_a_sweep_whose_driver_was_killed_is_collected_by_the_next_run(
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
    runs = flops_fit_core.Study.open(tmp_path / "study", tiny_registry()).results
    assert [one.status for one in runs] == ["completed"] * 4
    assert arrays(tmp_path / "study") == 1
    assert sum(len(lines(trace)) for trace in traces) == sum(one.run.steps for one in runs)


# ---------------------------------------------------------------------------- without a cluster


def options(**given: Any) -> Any:
    return installed().find("executor", "executors/slurm").spec.options.model_validate(given)


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(90, 90), ("1:30:00", 90), ("00:30", 30), ("2-12:00:00", 3600), ("0:00:01", 1), ("1:00:01", 61)],
)
def test_a_time_limit_is_in_minutes_or_as_slurm_writes_it(time: int | str, minutes: int) -> None:
    assert options(time=time, grace_period=10).limit == minutes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"time": "soon"}, "HH:MM:SS"),
        ({"time": "0:00"}, "nothing"),
        ({"time": 0}, "greater than 0"),
        ({"time": 1}, "must be shorter than time"),
        ({"extra": {"partition": "gpu"}}, "write executor.partition instead"),
        ({"extra": {"job-name": "mine"}}, "to find its jobs again"),
        ({"extra": {"--nice": "5"}}, "without its dashes"),
        ({"max_jobs": 1001}, "1000"),
        ({"partitoin": "gpu"}, "did you mean 'partition'"),
    ],
)
def test_an_option_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        options(**given)


def test_python_objects_are_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    spec = installed().find("executor", "executors/slurm").spec
    context = StudyExecutorContext(folder=tmp_path, plugins="{}", live={"inline": object()}, slots=[{}])
    with pytest.raises(ConfigError, match=r"inline.*-p MODULE"):
        spec.build(spec.options(), context)


def test_a_machine_without_slurm_is_told_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sbatch, srun, squeue, scancel here: run flops-fit on a login node"):
        build(tmp_path)


@on_slurm
def test_doctor_is_told_the_partitions() -> None:
    spec = installed().find("executor", "executors/slurm").spec
    (partition,) = spec.check(spec.options())
    assert partition.startswith("partition ")
    assert "1 nodes, up, at most " in partition


def test_doctor_is_told_that_there_is_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    spec = installed().find("executor", "executors/slurm").spec
    with pytest.raises(ConfigError, match="no sbatch"):
        spec.check(spec.options())
