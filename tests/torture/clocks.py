"""The wall clock jumps by hours, in both directions, while drivers train.

A jump neither steals a live claim (every run is trained once) nor blocks a dead driver's claim (a resumed sweep
ends within a minute). In ``other machine``, the drivers have different host names and clocks and share the folder.
"""

from __future__ import annotations

import signal
import socket
from functools import partial

from torture import experiments, shim
from torture.checker import acknowledged, check_trained_once
from torture.recovery import after_fault
from torture.session import Session
from torture.timing import random_moment
from torture.zygote import Trial

LEASE = 3.0
RUNS = 6
HOUR = 3600.0
JUMPS = (-12 * HOUR, -2 * HOUR, -60.0, 60.0, 2 * HOUR, 12 * HOUR)
ROUNDS = 5
"""Rounds per jump, store and scenario in full mode."""


def run(session: Session) -> None:
    """Every jump for every store and scenario."""
    scenarios = {
        "two drivers": jump_under_two_drivers,
        "dead driver": jump_after_kill,
        "other machine, both alive": partial(drive_on_two_machines, kill=False),
        "other machine, one dead": partial(drive_on_two_machines, kill=True),
    }
    faults = [
        (store, name, jump, number)
        for store in ("sqlite", "json")
        for name in scenarios
        for jump in JUMPS
        for number in range(ROUNDS)
        if session.only in f"{store}, {name}"
    ]
    for store, name, jump, number in session.every(faults):
        table = experiments.noisy(store, runs=RUNS, seconds=0.5)
        with session.trial(Trial(table, "clocks", lease=LEASE)) as trial:
            fault = f"{jump / HOUR:+.2f} hours, round {number}"
            violations = partial(scenarios[name], trial, jump, session)
            session.check(f"clocks: {store}", name, fault, violations)
            session.tally.acknowledged += len(acknowledged(trial))


def jump_under_two_drivers(trial: Trial, jump: float, session: Session) -> list[str]:
    """The clock jumps while both train."""
    drivers = [trial.start(), trial.start()]
    random_moment(drivers[0], RUNS // 2, session.random, gap=0.5)
    trial.faults.shift_clock(jump)
    ends = [driver.wait(60) for driver in drivers]
    violations = [f"a driver: {ended}" for ended in ends if ended.status != 0]
    return violations + check_trained_once(trial) + after_fault(trial, None)


def jump_after_kill(trial: Trial, jump: float, session: Session) -> list[str]:
    """A driver is killed, and the clock jumps before the next starts."""
    driver = trial.start()
    random_moment(driver, RUNS, session.random, gap=0.5)
    driver.send(signal.SIGKILL)
    driver.wait()
    trial.faults.shift_clock(jump)
    return after_fault(trial, None, seconds=60)


def drive_on_two_machines(trial: Trial, jump: float, session: Session, kill: bool) -> list[str]:
    """Two machines with different clocks. The first driver may be killed: the second waits for the lease only."""
    other_clock = shim.SharedState(trial.folder / "other-state")
    other_clock.shift_clock(jump)

    def become_other_machine() -> None:
        shim.attach(other_clock.file, "driver")
        socket.gethostname = lambda: "other-machine"

    first = trial.start()
    random_moment(first, RUNS // 2, session.random, gap=0.5)
    second = trial.start(before=become_other_machine)
    if kill:
        random_moment(second, 1, session.random, gap=0.5)
        first.send(signal.SIGKILL)
    ends = [driver.wait(60) for driver in (first, second)]
    checked = ends[1:] if kill else ends
    violations = [f"a driver: {ended}" for ended in checked if ended.status != 0]
    return violations + check_trained_once(trial, 2 if kill else 1) + after_fault(trial, None, seconds=60)
