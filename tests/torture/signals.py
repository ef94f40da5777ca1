"""Signals at random moments, for drivers and workers, for each store and executor.

The trainer is not deterministic: a result that is replaced has another loss. SIGSTOP is longer than the lease, so
that another driver takes over; then the paused process continues.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torture import experiments
from torture.checker import acknowledged, check_ports, check_trained_once
from torture.recovery import after_fault
from torture.session import Session
from torture.timing import random_moment, until
from torture.zygote import Driver, Trial

LEASE = 2.0
RUNS = 6
PER_SCENARIO = 20
"""Faults per store, executor and kind in full mode."""
Scenario = Callable[[Trial, Session], list[str]]


def run(session: Session) -> None:
    """Every kind of fault for every store and executor."""
    with ExitStack() as stack:
        for name, make_store in stores(session, stack):
            for executor, table in (("local", "local"), ("processes", experiments.processes(2))):
                for kind, scenario in scenarios(executor).items():
                    if session.only in f"{name}, {executor}, {kind}":
                        repeat(
                            f"{name}, {executor}", kind, scenario, partial(make_table, make_store, table), session
                        )


def stores(session: Session, stack: ExitStack) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name of a store -> function that returns a new store's table."""
    from torture.postgres import missing_requirement, new_store, postgres_server

    yield "sqlite", lambda: "sqlite"
    yield "json", lambda: "json"
    if session.only and "postgres" not in session.only:
        return
    if (missing := missing_requirement()) is not None:
        session.tally.skip("signals: postgres", missing)
        return
    server = stack.enter_context(postgres_server())
    yield "postgres", partial(new_store, server)


def make_table(make_store: Callable[[], Any], executor: Any) -> dict[str, Any]:
    return experiments.noisy(make_store(), executor, RUNS, seconds=0.15)


def scenarios(executor: str) -> dict[str, Scenario]:
    """Kind of fault -> the trial of it."""
    kinds: dict[str, Scenario] = {
        "SIGKILL of a driver": partial(signal_driver, number=signal.SIGKILL),
        "SIGTERM of a driver": partial(signal_driver, number=signal.SIGTERM),
        "SIGINT of a driver": partial(signal_driver, number=signal.SIGINT),
        "SIGSTOP of a driver beyond its lease": pause_driver,
        "SIGKILL of one of two drivers": kill_of_two,
    }
    if executor != "local":
        kinds["SIGKILL of a worker"] = partial(signal_worker, number=signal.SIGKILL)
        kinds["SIGTERM of a worker"] = partial(signal_worker, number=signal.SIGTERM)
        kinds["SIGSTOP of a worker beyond the lease"] = pause_worker
    return kinds


def repeat(part: str, kind: str, scenario: Scenario, table: Callable[[], Any], session: Session) -> None:
    for index in range(session.number(PER_SCENARIO)):
        with session.trial(Trial(table(), "signals", lease=LEASE)) as trial:
            fault = f"number {index} of seed {session.seed}"
            session.check(f"signals: {part}", kind, fault, partial(scenario, trial, session))
            session.tally.acknowledged += len(acknowledged(trial))


def signal_driver(trial: Trial, session: Session, number: int) -> list[str]:
    """Send a signal at a random moment. SIGTERM and SIGINT end a driver with status 130."""
    driver = trial.start()
    random_moment(driver, RUNS, session.random, gap=0.3)
    violations = check_ports(trial)
    was_training = driver.poll() is False and "to train" in driver.text
    driver.send(number)
    ended = driver.wait(60)
    if number != signal.SIGKILL and was_training and ended.status not in (0, 130):
        violations.append(f"{ended} after {signal.Signals(number).name}: {driver.text.strip()[-300:]}")
    return violations + after_fault(trial, None)


def signal_worker(trial: Trial, session: Session, number: int) -> list[str]:
    """Send a signal to a worker. The driver retries the run, or reports it as failed."""
    driver = trial.start()
    until(lambda: trial.workers() or driver.poll())
    random_moment(driver, RUNS, session.random, gap=0.3)
    for pid in trial.workers()[:1]:
        send(pid, number)
    ended = driver.wait(90)
    violations = [] if ended.status in (0, 1) else [f"the driver: {ended}: {driver.text.strip()[-300:]}"]
    return violations + after_fault(trial, None)


def pause_driver(trial: Trial, session: Session) -> list[str]:
    """Pause a driver until another has trained its runs; then it continues with its stale claims."""
    paused = trial.start()
    until(lambda: "to train" in paused.text or paused.poll())
    random_moment(paused, RUNS - 1, session.random, gap=0.15)
    pause(paused)
    other = trial.start()
    ended = other.wait(60)
    violations = [] if ended.status == 0 else [f"the other driver: {ended}: {other.text.strip()[-300:]}"]
    paused.send(signal.SIGCONT)
    ended = paused.wait(60)
    if ended.status != 0:
        violations.append(f"the paused driver: {ended}: {paused.text.strip()[-300:]}")
    return violations + after_fault(trial, None)


def pause(driver: Driver) -> None:
    """Stop a driver while it holds no lock for writing: with one, other drivers end with an error after
    ``lock_timeout`` (docs/reliability.md)."""
    while not driver.poll():
        driver.send(signal.SIGSTOP)
        until(lambda: driver.poll() or is_stopped(driver.pid))
        if not holds_lock(driver.pid):
            return
        driver.send(signal.SIGCONT)
        time.sleep(0.005)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


def holds_lock(pid: int) -> bool:
    """Whether a process holds an exclusive lock of any file."""
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any("WRITE" in fields and str(pid) in fields and "->" not in fields for fields in locks)


def pause_worker(trial: Trial, session: Session) -> list[str]:
    """Pause a worker beyond the lease. Its driver is healthy: no other driver takes its run."""
    driver = trial.start()
    until(lambda: trial.workers() or driver.poll())
    random_moment(driver, RUNS - 1, session.random, gap=0.3)
    workers = [pid for pid in trial.workers() if send(pid, signal.SIGSTOP)]
    other = trial.start()
    time.sleep(2 * LEASE)
    for pid in workers:
        send(pid, signal.SIGCONT)
    ends = [driver.wait(60), other.wait(60)]
    violations = [f"a driver: {ended}" for ended in ends if ended.status != 0]
    return violations + check_trained_once(trial) + after_fault(trial, None)


def kill_of_two(trial: Trial, session: Session) -> list[str]:
    """Kill one of two drivers. The other completes the plan, without waiting for the lease."""
    killed, other = trial.start(), trial.start()
    random_moment(killed, RUNS // 2, session.random, gap=0.3)
    killed.send(signal.SIGKILL)
    killed.wait()
    ended = other.wait(60)
    violations = [] if ended.status == 0 else [f"the other driver: {ended}: {other.text.strip()[-300:]}"]
    return violations + after_fault(trial, None)


def send(pid: int, number: int) -> bool:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
