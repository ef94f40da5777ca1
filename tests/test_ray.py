"""The executor ``ray`` on a real cluster: a head and two nodes, started on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import hostile_studies
import pytest
from pydantic import ValidationError
from ray_cluster import descendants, ray_cluster
from small import Bench

import flops_fit_core
from flops_fit_core import RunResult
from flops_fit_core.plugins import JobEnded, Logger, Outbox
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing import ExecutorConformance, example_result
from flops_fit_core.testing.executors import (
    CRAWL,
    DIE,
    LEARN,
    is_running,
    tiny_jobs,
    tiny_registry,
    traced,
)
from flops_fit_core.training.executor_context import StudyExecutorContext

pytest.importorskip("ray", reason="Ray is not installed: pip install 'flops-fit[ray]'")
pytestmark = pytest.mark.ray

SLOW = "import time; time.sleep(0.03)"


@pytest.fixture(scope="module", autouse=True)
def _without_tokens():
    """Disable Ray's token authentication before Ray is imported: it reads the variable only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster(nodes=2) as running:
        yield running


@pytest.fixture(scope="class")
def joined_before(cluster):
    """Ray is initialized before, as in a program that uses Ray: the executor neither joins nor leaves."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield
    assert ray.is_initialized()
    ray.shutdown()


@pytest.mark.usefixtures("joined_before")
class TestRay(ExecutorConformance):
    name = "ray"
    daemons_take = 10.0

    @pytest.mark.slow
    def test_python_objects_reach_the_tasks(self, tmp_path, cluster):
        bench = Bench()
        ray = {"name": "ray", "address": cluster.address}
        on_ray, local = (
            flops_fit_core.run(bench.table(executor=executor), registry=bench.registry(), out=tmp_path / name)
            for name, executor in [("ray", ray), ("local", "local")]
        )
        assert [result.loss for result in on_ray.results] == [result.loss for result in local.results]
        assert len(bench.served) == 60, "only the local sweep was trained in this process"


def executor_in(folder, **options):
    spec = installed().find("executor", "executors/ray").spec
    setup = tiny_registry().setup.model_dump_json()
    slots = [{"CUDA_VISIBLE_DEVICES": ""}] * 2
    context = StudyExecutorContext(folder=folder, plugins=setup, live={}, slots=slots)
    return spec.build(spec.options.model_validate(options), context)


def table(*codes, **executor):
    """A sweep of one run of about 180 steps for each code, with a checkpoint every 0.3 seconds."""
    return {
        "sweep": {
            "budgets": [500_000],
            "sizes": [{"width": 4 + index, "code": code} for index, code in enumerate(codes)],
            "batch_size": 8,
        },
        "model": "tiny/tiny",
        "dataset": "tiny/majority",
        "optimizer": "tiny/plain",
        "trainer": {"name": "trainers/torch", "eval_tokens": 256, "checkpoint_minutes": 0.005},
        "device": "devices/cpu",
        "executor": executor,
    }


def wait_until(is_true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


# ---------------------------------------------------------------------------- this machine alone


@pytest.mark.slow
def test_local_ray_describes_how_a_job_ended_and_prints_nothing_to_the_terminal(tmp_path, capfd):
    leave = "import os, sys; print('the disk is full', file=sys.stderr, flush=True); os._exit(3)"
    look = "import os, torch; print('threads', torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    killed, exited, looked, large = tiny_jobs(DIE, leave, look, LEARN)
    runs = [run.model_copy(update={"devices": 999}) for run in large.runs]
    (trajectory,) = large.trajectories
    large = large.model_copy(update={"trajectories": (trajectory.model_copy(update={"runs": tuple(runs)}),)})
    executor = executor_in(tmp_path, cpus=1)
    try:
        for job in (killed, exited, looked, large):
            executor.submit(job)
        with pytest.raises(ValueError, match="is submitted already"):
            executor.submit(looked)
        events = list(executor.events(120.0))
    finally:
        executor.close()
    errors = {event.job: event.error for event in events if isinstance(event, JobEnded)}
    assert errors[killed.id].startswith("the worker died on ")
    assert errors[exited.id].endswith(": the disk is full")
    assert errors[large.id].startswith("a job needs 999 CPU, 0 GPU on one node, and the nodes have: ")
    assert errors[looked.id] is None
    assert "threads 1 1\n" in "".join(log.read_text() for log in (tmp_path / "logs").iterdir())
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(looked)


def test_a_result_that_ray_loses_with_its_worker_is_in_the_outbox(tmp_path, joined_before):
    """Ray delivers messages with a delay, and never if the worker is killed at once."""
    trained, killed, undelivered = tiny_jobs(LEARN, DIE, LEARN)
    pair = killed.model_copy(update={"trajectories": killed.trajectories + undelivered.trajectories})
    outbox = Outbox(tmp_path)
    executor = executor_in(tmp_path)
    stale = example_result(run=trained.runs[0])
    outbox.put(stale)
    try:
        executor.submit(trained)
        (result,) = [event for event in executor.events(60.0) if isinstance(event, RunResult)]
        assert result.finished != stale.finished
        assert outbox.get(result.id) == result, "the worker writes a result to the outbox before it yields it"

        executor.submit(pair)
        lost = example_result(run=undelivered.runs[0])
        outbox.put(lost)  # as a worker does that then dies in its next run
        events = list(executor.events(60.0))
    finally:
        executor.close()
    assert [event for event in events if isinstance(event, RunResult)] == [lost]
    (ended,) = [event for event in events if isinstance(event, JobEnded)]
    assert ended.error.startswith("the worker died")


DRIVER = """
import json, sys
import flops_fit_core
from flops_fit_core.testing.executors import tiny_registry

table, folder = json.loads(sys.argv[1]), sys.argv[2]
flops_fit_core.run(table, registry=tiny_registry(), out=folder)
"""


def driver(experiment, folder):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(experiment), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_ctrl_c_stops_ray_within_seconds_with_checkpoints_and_leaves_no_process(tmp_path):
    trace, study = tmp_path / "trace", tmp_path / "study"
    experiment = table(traced(CRAWL, trace), traced(CRAWL, trace), name="ray")
    experiment["trainer"]["checkpoint_minutes"] = 60
    with driver(experiment, study) as process:
        try:
            wait_until(lambda: trace.exists() and len(trace.read_text().splitlines()) == 2)
            time.sleep(1)
            started = descendants(process.pid)
            workers = [int(line.split()[1]) for line in trace.read_text().splitlines()]
            assert set(workers) < set(started)
            process.send_signal(signal.SIGINT)
            before = time.monotonic()
            output, _ = process.communicate(timeout=30)
            assert time.monotonic() - before < 15
        finally:
            process.kill()
    assert output.rstrip().endswith("KeyboardInterrupt")
    wait_until(lambda: not any(map(is_running, started)), seconds=10)
    assert len(list(study.glob("checkpoints/*/latest.pt"))) == 2


# ---------------------------------------------------------------------------- a cluster


@pytest.mark.slow
def test_tasks_do_not_outlive_a_driver_that_is_killed(tmp_path, cluster):
    trace = tmp_path / "trace"
    experiment = table(traced(CRAWL, trace), name="ray", address=cluster.address)
    with driver(experiment, tmp_path / "study") as process:
        try:
            wait_until(lambda: trace.exists() and trace.read_text().endswith("\n"))
            worker = int(trace.read_text().split()[1])
            assert is_running(worker)
        finally:
            process.kill()
    wait_until(lambda: not is_running(worker), seconds=10)


def test_ray_restores_the_environment_of_this_process(tmp_path, cluster):
    before = dict(os.environ), signal.getsignal(signal.SIGTERM)
    executor = executor_in(tmp_path, address=cluster.address)
    assert executor.capacity == 2
    executor.close()
    assert (dict(os.environ), signal.getsignal(signal.SIGTERM)) == before


def test_the_processes_of_a_node_are_found_after_process_ids_have_wrapped_around(monkeypatch):
    parents = [(300, 32000), (32000, 31000), (301, 300), (400, 1)]
    monkeypatch.setattr("ray_cluster._parents", lambda: iter(parents))
    assert descendants(31000) == [31000, 32000, 300, 301]


class KillsTheNode(Logger):
    """A logger that kills the node of a run in the middle of it, and records all events."""

    def __init__(self, cluster, trace):
        self.cluster, self.trace = cluster, trace
        self.steps, self.finished_runs = defaultdict(list), []
        self.killed = None

    def progress(self, progress):
        self.steps[progress.run].append(progress.step)
        if self.killed is None and self.trace.exists() and 60 < progress.step < progress.steps - 60:
            worker = int(self.trace.read_text().split()[1])
            (node,) = [node for node in self.cluster.nodes if worker in node.processes()]
            node.kill()
            self.killed = progress

    def finished(self, result):
        self.finished_runs.append(result)


@pytest.mark.slow
def test_a_run_resumes_on_another_node_after_its_node_is_killed_and_losses_equal_local_ones(tmp_path, cluster):
    codes = [LEARN, LEARN, traced(SLOW, tmp_path / "trace"), LEARN]
    killer = KillsTheNode(cluster, tmp_path / "trace")
    study = flops_fit_core.plan(
        table(*codes, name="ray", address=cluster.address), registry=tiny_registry(), out=tmp_path / "ray"
    )
    results = study.train(loggers=[killer])
    assert killer.killed is not None
    assert sorted(result.id for result in killer.finished_runs) == sorted(run.id for run in study.plan.runs)
    assert {(result.status, result.attempt) for result in results} == {("completed", 1)}

    lost = killer.killed.run
    workers = [line.split()[1] for line in (tmp_path / "trace").read_text().splitlines()]
    assert len(set(workers)) == len(workers) == 2, "one start before the node was killed, one after"
    later_steps = killer.steps[lost][killer.steps[lost].index(killer.killed.step) + 1 :]
    assert min(later_steps) > killer.killed.step / 2, "it did not restart from step 0"

    local = flops_fit_core.run(table(*codes, name="local"), registry=tiny_registry(), out=tmp_path / "local")
    assert [result.id for result in results] == [result.id for result in local.results]
    assert [result.loss for result in results] == [result.loss for result in local.results]


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "ray://head:10001"}, "on a node of the cluster"),
        ({"gpus": 1.5}, "write a whole number of GPUs, or a fraction below 1"),
        ({"cpus": 0}, "greater than 0"),
    ],
)
def test_options_that_ray_does_not_support_are_rejected(options, message):
    with pytest.raises(ValidationError, match=message):
        installed().find("executor", "executors/ray").spec.options.model_validate(options)


def test_the_number_of_workers_is_known_for_this_machine_and_unknown_for_a_cluster():
    spec = installed().find("executor", "executors/ray").spec
    assert spec.places(spec.options(), [{}] * 8) == 8
    assert spec.places(spec.options(cpus=4), [{}] * 8) == 2
    assert spec.places(spec.options(address="auto"), [{}] * 8) is None


@pytest.mark.slow
def test_workers_import_no_module_of_the_working_directory(tmp_path):
    """A folder of another user may have a module of the name of an installed one."""
    study, trace = tmp_path / "study", tmp_path / "executed"
    table = hostile_studies.formula(
        sweep={"budgets": [1e18], "sizes": 2, "batch_size": 8}, executor={"name": "ray", "cpus": 1}
    )
    study.mkdir()
    for name in ("flops_fit_core", "flops_fit_executors", "numpy", "torch", "pydantic"):
        (study / f"{name}.py").write_text(hostile_studies.traced(trace, name))
    (study / "own.json").write_text(json.dumps(table))
    program = Path(sys.executable).with_name("flops-fit")
    done = subprocess.run(
        [program, "run", "own.json", "--out", "."], cwd=study, capture_output=True, text=True, check=False
    )
    assert "[2/2]" in done.stderr, done.stderr
    assert not trace.exists()
