"""Two to five complete drivers of one study at the same time, report included."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from torture import experiments
from torture.checker import acknowledged, check_ports, check_report, check_trained_once
from torture.recovery import after_fault
from torture.session import Session
from torture.timing import random_moment
from torture.zygote import Trial

ROUNDS = 40
"""Rounds per number of drivers and store in full mode."""


def run(session: Session) -> None:
    """Start the drivers within 0.3 seconds, and check that all end well."""
    cases = [(store, count) for store in ("sqlite", "json") for count in (2, 3, 4, 5)]
    for store, count in [("sqlite", 2), ("json", 3)] if session.quick else cases:
        for number in range(session.number(ROUNDS)):
            executor: Any = experiments.processes(1) if number % 8 == 7 else "local"
            table = experiments.noisy(store, executor, runs=10, seconds=0.1)
            if session.only in store:
                with session.trial(Trial(table, "drivers", report=True)) as trial:
                    violations = partial(drive_together, trial, count, session)
                    session.check(f"drivers: {store}", f"{count} drivers", f"round {number}", violations)
                    session.tally.acknowledged += len(acknowledged(trial))


def drive_together(trial: Trial, count: int, session: Session) -> list[str]:
    """Every driver ends with status 0, every run was trained once, and the report is complete."""
    drivers = []
    for _ in range(count):
        drivers.append(trial.start())
        time.sleep(session.random.uniform(0, 0.3 / count))
    random_moment(drivers[0], 5, session.random, gap=0.1)
    violations = check_ports(trial)
    for driver in drivers:
        ended = driver.wait(120)
        if ended.status != 0:
            violations.append(f"a driver: {ended}: {driver.text.strip()[-400:]}")
    return violations + check_trained_once(trial) + check_report(trial.study) + after_fault(trial, None)
