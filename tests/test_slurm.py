"""The executor ``slurm`` on a real Slurm of one node, which the tests bring up and take down."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Cluster, cluster, wait_until, why_not

import flops_fit_core
from flops_fit_core import ConfigError, ExecutorContext, Job, JobEnded, Progress, RunResult
from flops_fit_core.registry import installed
from flops_fit_core.testing import ExecutorConformance
from flops_fit_core.testing.executors import LEARN, tiny_jobs, tiny_registry, traced

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
    options = {**QUICK, "max_jobs": 2}


# ---------------------------------------------------------------------------- parts


def build(folder: Path, **options: Any) -> Any:
    spec = installed().find("executor", "executors/slurm").spec
    setup = tiny_registry().setup.model_dump_json()
    context = ExecutorContext(folder=folder, plugins=setup, live={}, slots=[{}])
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


def reasons(events: list[Any]) -> list[str | None]:
    return [event.reason for event in events if isinstance(event, JobEnded)]


def arrays(folder: Path) -> int:
    """How often sbatch was called."""
    return len(list((folder / "slurm" / "logs").glob("*_submission.sh")))


SLOW_STEPS = "import time; time.sleep(0.1)"


def study(**more: Any) -> dict[str, Any]:
    return {
        "sweep": {"budgets": [500_000, 900_000], "sizes": [{"width": 4}, {"width": 6}], "batch_size": 8},
        "model": "tiny/tiny",
        "dataset": "tiny/majority",
        "optimizer": "tiny/plain",
        "trainer": {"name": "trainers/torch", "heldout_tokens": 256},
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
    assert list((tmp_path / "there" / "slurm" / "jobs").glob("*")) == []


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
    assert reasons(seen) == [None] * 3
    assert [processes(trace) for trace in traces] == [1, 1, 1], "a job was trained by more than one process"
    assert arrays(tmp_path) == 2, "the first driver's, and the third job's own"


@on_slurm
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
def test_closing_lets_a_job_write_its_checkpoint_and_the_next_driver_goes_on_from_there(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (job,) = tiny_jobs(counting(trace, "import time; time.sleep(0.02)"))
    with opened(tmp_path) as executor:
        executor.submit(job)
        seen = read_until(executor, lambda: len(lines(trace)) > 20)
        began = time.monotonic()
        executor.close()
        assert time.monotonic() - began < 10
        assert [*reasons(seen), *reasons(list(executor.events(1.0)))] == ["the executor was closed"]
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
def test_a_job_that_never_said_a_word_ends_with_what_slurm_kept_of_it(tmp_path: Path) -> None:
    with opened(tmp_path, setup=["echo no such module >&2", "exit 3"]) as executor:
        (job,) = tiny_jobs(LEARN)
        executor.submit(job)
        began = time.monotonic()
        (event,) = executor.events(60.0)
    assert time.monotonic() - began < 60
    assert event.reason.endswith("is FAILED: no such module")


@on_slurm
def test_what_sbatch_does_not_take_is_the_users_to_change(tmp_path: Path) -> None:
    with opened(tmp_path, partition="nowhere") as executor:
        executor.submit(*tiny_jobs(LEARN))
        with pytest.raises(ConfigError, match="invalid partition specified: nowhere"):
            list(executor.events(10.0))
    assert list((tmp_path / "slurm" / "jobs").glob("*")) == []


# ---------------------------------------------------------------------------- requeued


def requeued(up: Cluster, folder: Path, trace: Path, interrupt: Callable[[str], object]) -> list[Any]:
    """What is said of a job that is interrupted in the middle, and whose second turn need not wait."""
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
    assert [one.status for one in results(seen)] == ["completed"]
    assert reasons(seen) == [None]
    assert len(lines(trace)) == job.runs[0].steps, "a step was trained twice, or never"
    assert processes(trace) == 2
    return seen


@on_slurm
def test_a_job_whose_time_limit_is_near_writes_a_checkpoint_and_goes_on_in_another_turn(
    tmp_path: Path, on_the_cluster: Cluster
) -> None:
    def interrupt(slurm: str) -> None:
        on_the_cluster.command("scancel", "--signal=USR2", slurm)

    requeued(on_the_cluster, tmp_path, tmp_path / "trace", interrupt)
