"""A fault at every write-side system call of driver, worker and checkpoint writer.

An undisturbed drive is logged first. Then each call x each action is one trial: SIGKILL before and after the call,
a torn write, a short write, a failed fsync, EIO, and ENOSPC from there on. The interrupted study must open with
every acknowledged result, and the resumed sweep must complete with the plan, the results and the fit of the
undisturbed one.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torture import experiments
from torture.checker import View, acknowledged
from torture.recovery import after_fault, reference_of
from torture.session import Session
from torture.shim import Fault, read_log
from torture.zygote import Trial, base

LEASE = 20.0
KILLS = ("kill_before", "kill_after")
ACTIONS = {"write": (*KILLS, "torn", "short")}
"""Operation -> actions other than errors."""
NEEDS_SPACE = ("open", "write", "rename", "link", "truncate", "allocate", "mkdir")


@dataclass(frozen=True)
class Scenario:
    """A kind of drive."""

    name: str
    table: Callable[[], dict[str, Any]]
    part: str = ""
    """Only calls on paths that contain it."""
    role: str = "driver"
    report: bool = False
    share: int = 1
    """Every n-th fault only, because a drive is slow."""

    def trial(self) -> Trial:
        return Trial(self.table(), "calls", lease=LEASE, report=self.report)


def scenarios() -> list[Scenario]:
    text = base() / "text"
    two = experiments.processes(1)
    return [
        Scenario("sqlite", experiments.surface),
        Scenario("json", partial(experiments.surface, "json")),
        Scenario("checkpoints, local", partial(experiments.gpt, text), part="checkpoints", share=3),
        Scenario("report and fit", partial(experiments.surface, "json"), part="report", report=True, share=6),
        Scenario("fit.json", experiments.surface, part="fit.json"),
        Scenario("worker", partial(experiments.gpt, text, two), role="worker", share=30),
        Scenario("driver of workers", partial(experiments.surface, "json", two), share=30),
    ]


def run(session: Session) -> None:
    """Enumerate the calls of each scenario, and inject every ``stride``-th fault."""
    for scenario in scenarios():
        if session.only not in scenario.name or (session.quick and "worker" in scenario.name):
            continue
        reference, calls = drive_undisturbed(scenario, session)
        faults = list(enumerate_faults(scenario, calls))
        for fault in session.every(faults, scenario.share):
            inject(scenario, fault, reference, session)


def drive_undisturbed(scenario: Scenario, session: Session) -> tuple[View, Counter[str]]:
    """The finished study, and the calls per operation."""
    with session.trial(scenario.trial()) as trial:
        log = trial.folder / "log"
        trial.faults.arm(trial.study, log=log)
        reference = reference_of(trial)
        driver = trial.drivers[0].pid
        records = [record for record in read_log(log) if (record.pid == driver) == (scenario.role == "driver")]
        return reference, Counter(record.operation for record in records if scenario.part in record.path)


def enumerate_faults(scenario: Scenario, calls: Counter[str]) -> Iterator[Fault]:
    """Every call x every action."""
    for operation, count in sorted(calls.items()):
        for nth in range(1, count + 1):
            make = partial(Fault, operation, nth=nth, role=scenario.role, part=scenario.part)
            for action in ACTIONS.get(operation, KILLS):
                yield make(action)
            yield make("error", error=errno.EIO)
            if operation in NEEDS_SPACE:
                yield make("error", error=errno.ENOSPC, full_disk=True)


def inject(scenario: Scenario, fault: Fault, reference: View, session: Session) -> None:
    """One drive with the fault, then its resumption."""
    with session.trial(scenario.trial()) as trial:
        trial.faults.arm(trial.study, fault)
        trial.run()
        if not trial.faults.disarm():
            session.tally.classify(f"calls: {scenario.name}", fault.kind, "not reached")
            return
        session.check(f"calls: {scenario.name}", fault.kind, str(fault), lambda: after_fault(trial, reference))
        session.tally.acknowledged += len(acknowledged(trial))
