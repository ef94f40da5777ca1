"""Slurm and Ray: drivers and workers are killed, and the sweep is resumed.

Both clusters are real, on this machine. Their workers outlive their driver and write results to the outbox. The
next driver stores these results.
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

from torture import experiments
from torture.checker import acknowledged
from torture.recovery import after_fault
from torture.session import Session
from torture.timing import random_moment, until
from torture.zygote import Trial

LEASE = 5.0
RUNS = 4
ROUNDS = 8
"""Rounds per scenario and store in full mode."""
Cluster = tuple[dict[str, Any], dict[str, str]]
"""Table of the executor, and environment of the drivers."""


def run(session: Session) -> None:
    """Every scenario on every cluster that can start."""
    for name, missing, start in (("slurm", missing_slurm, start_slurm), ("ray", missing_ray, start_ray)):
        if session.only and session.only not in name:
            continue
        if (reason := missing()) is not None:
            session.tally.skip(f"clusters: {name}", reason)
            continue
        with start() as cluster:
            for kind, scenario in scenarios(name).items():
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
    if name == "slurm":
        kinds["SIGKILL of a worker"] = kill_worker
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


def kill_worker(trial: Trial, session: Session) -> list[str]:
    driver = trial.start()
    until(lambda: trial.workers() or driver.poll())
    random_moment(driver, RUNS, session.random, gap=2.0)
    for pid in trial.workers()[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    driver.wait(120)
    return finish(trial)


def finish(trial: Trial) -> list[str]:
    """Workers may outlive their driver for the rest of their job; then the usual checks apply."""
    until(lambda: not trial.processes(), seconds=60, pause=0.2)
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
