"""Slurm and Ray: drivers and workers are killed, and the sweep is resumed.

Both clusters are real, on this machine. Their workers outlive their driver and write results to the outbox. The
next driver stores these results. Slurm's files of queued jobs are damaged while no driver runs.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from ray_cluster import descendants

from torture import experiments
from torture.checker import acknowledged
from torture.recovery import after_fault
from torture.session import Session
from torture.shim import Fault
from torture.signals import send
from torture.timing import random_moment, until
from torture.zygote import Driver, Trial

LEASE = 5.0
RUNS = 4
ROUNDS = 8
"""Rounds per scenario and store in full mode."""
Cluster = tuple[dict[str, Any], dict[str, str]]
"""Table of the executor, and environment of the drivers."""
Workers = Callable[[Trial], list[int]]


def run(session: Session) -> None:
    """Every scenario on every cluster that can start."""
    for name, missing, start in (("slurm", missing_slurm, start_slurm), ("ray", missing_ray, start_ray)):
        kinds = {kind: item for kind, item in scenarios(name).items() if session.only in f"{name}, {kind}"}
        if not kinds:
            continue
        if (reason := missing()) is not None:
            session.tally.skip(f"clusters: {name}", reason)
            continue
        with start() as cluster:
            for kind, scenario in kinds.items():
                for number in range(session.number(ROUNDS)):
                    run_trial(name, cluster, kind, scenario, number, session)


def run_trial(
    name: str, cluster: Cluster, kind: str, scenario: Callable[..., list[str]], number: int, session: Session
) -> None:
    executor, environment = cluster
    table = experiments.noisy(("sqlite", "json")[number % 2], executor, RUNS, seconds=0.3)
    with session.trial(Trial(table, "clusters", lease=LEASE, environment=environment)) as trial:
        session.check(f"clusters: {name}", kind, f"round {number}", partial(scenario, trial, session))
        session.tally.acknowledged += len(acknowledged(trial))


def scenarios(name: str) -> dict[str, Callable[[Trial, Session], list[str]]]:
    kinds: dict[str, Callable[[Trial, Session], list[str]]] = {
        "SIGKILL of a driver": partial(signal_driver, number=signal.SIGKILL),
        "SIGTERM of a driver": partial(signal_driver, number=signal.SIGTERM),
        "SIGSTOP of a driver beyond its lease": pause_driver,
    }
    workers = {"slurm": slurm_workers, "ray": ray_workers}[name]
    kinds["SIGKILL of a worker"] = partial(signal_worker, workers, number=signal.SIGKILL)
    kinds["SIGTERM of a worker"] = partial(signal_worker, workers, number=signal.SIGTERM)
    kinds["SIGSTOP of a worker beyond the lease"] = partial(pause_worker, workers)
    if name == "slurm":
        kinds["damaged file of a queued job"] = damage_job
        kinds["system call of a worker"] = fail_call
    return kinds


def signal_driver(trial: Trial, session: Session, number: int) -> list[str]:
    driver = trial.start()
    random_moment(driver, RUNS, session.random, gap=3.0)
    driver.send(number)
    driver.wait(60)
    return finish(trial)


def pause_driver(trial: Trial, session: Session) -> list[str]:
    """Pause a driver for longer than its lease, while another drives.

    The other may have to wait for the paused one: it holds CPUs of a Ray cluster.
    """
    paused = trial.start()
    until(lambda: "to train" in paused.text or paused.poll())
    random_moment(paused, RUNS - 1, session.random, gap=1.0)
    paused.send(signal.SIGSTOP)
    other = trial.start()
    time.sleep(3 * LEASE)
    paused.send(signal.SIGCONT)
    ends = [paused.wait(120), other.wait(120)]
    return [f"a driver: {ended}" for ended in ends if ended.status != 0] + finish(trial)


def signal_worker(find_workers: Workers, trial: Trial, session: Session, number: int) -> list[str]:
    """The driver trains the runs of the worker again, or reports them as failed."""
    driver, pids = start_workers(find_workers, trial)
    random_moment(driver, RUNS, session.random, gap=2.0)
    if pids:
        send(session.random.choice(pids), number)
    ended = driver.wait(120)
    violations = [] if ended.status in (0, 1) else [f"the driver: {ended}: {driver.text.strip()[-300:]}"]
    return violations + finish(trial)


def pause_worker(find_workers: Workers, trial: Trial, session: Session) -> list[str]:
    """A paused worker continues, or its run is trained again."""
    driver, _ = start_workers(find_workers, trial)
    random_moment(driver, RUNS - 1, session.random, gap=1.0)
    paused = [pid for pid in find_workers(trial) if send(pid, signal.SIGSTOP)]
    time.sleep(2 * LEASE)
    for pid in paused:
        send(pid, signal.SIGCONT)
    ended = driver.wait(120)
    violations = [] if ended.status == 0 else [f"the driver: {ended}: {driver.text.strip()[-300:]}"]
    return violations + finish(trial)


def damage_job(trial: Trial, session: Session) -> list[str]:
    """Kill a driver, and flip a bit of each file in ``jobs/`` under the queued and the running jobs."""
    driver = trial.start()
    until(lambda: any((trial.study / "jobs").glob("*.state.json")) or driver.poll())
    random_moment(driver, RUNS - 1, session.random, gap=1.0)
    driver.send(signal.SIGKILL)
    driver.wait()
    for file in sorted((trial.study / "jobs").glob("[!.]*")):
        with suppress(FileNotFoundError):
            content = bytearray(file.read_bytes())
            content[session.random.randrange(len(content))] ^= 1 << session.random.randrange(8)
            file.write_bytes(content)
    return finish(trial)


def fail_call(trial: Trial, session: Session) -> list[str]:
    """A call of a worker on the outbox or on a file of its job is the last one, or fails.

    Slurm passes the environment of the driver on, and with it the shim.
    """
    operation = session.random.choice(("open", "write", "fsync", "rename"))
    action = session.random.choice(("kill_before", "kill_after", "error"))
    part = session.random.choice(("outbox", "jobs"))
    fault = Fault(operation, action, session.random.randint(1, 3), role="worker", part=part)
    trial.faults.arm(trial.study, fault)
    driver = trial.start()
    ended = driver.wait(120)
    trial.faults.disarm()
    violations = [] if ended.status in (0, 1) else [f"{fault}: {ended}: {driver.text.strip()[-300:]}"]
    return violations + finish(trial)


def start_workers(find_workers: Workers, trial: Trial) -> tuple[Driver, list[int]]:
    """A driver with at least one worker, unless it has ended."""
    driver = trial.start()
    until(lambda: find_workers(trial) or driver.poll())
    return driver, find_workers(trial)


def slurm_workers(trial: Trial) -> list[int]:
    """The processes of all jobs, batch scripts included: they have the mark of the trial."""
    return trial.workers()


def ray_workers(trial: Trial) -> list[int]:
    """The processes of all tasks of the cluster: they have the environment of their node."""
    return [pid for pid, command in commands() if command.startswith("ray::") and "IDLE" not in command]


def commands() -> Iterator[tuple[int, str]]:
    """Id and command line of every process that this one has started."""
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def finish(trial: Trial) -> list[str]:
    """Workers may outlive their driver for the rest of their job; then the usual checks apply."""
    until(lambda: not trial.processes() and not ray_workers(trial), seconds=30, pause=0.2)
    return after_fault(trial, None)


# ---------------------------------------------------------------------------- clusters


def missing_slurm() -> str | None:
    from slurm_cluster import missing_requirement

    try:
        import submitit  # noqa: F401
    except ImportError:
        return "submitit is not installed: pip install 'flops-fit[slurm]'"
    return missing_requirement()


@contextmanager
def start_slurm() -> Iterator[Cluster]:
    from slurm_cluster import cluster

    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder, cluster(Path(folder)) as running:
        table = {"name": "slurm", "poll": 0.5, "memory": "1G", "max_jobs": 2}
        yield table, running.environment


def missing_ray() -> str | None:
    try:
        import ray  # noqa: F401
    except ImportError:
        return "Ray is not installed: pip install 'flops-fit[ray]'"
    return None


@contextmanager
def start_ray() -> Iterator[Cluster]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray_cluster import ENVIRONMENT, ray_cluster

    with ray_cluster(nodes=2) as running:
        yield {"name": "ray", "address": running.address}, dict(ENVIRONMENT)
