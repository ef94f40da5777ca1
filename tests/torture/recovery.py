"""Check a study after a fault, resume it to its end, and check it again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torture import checker
from torture.checker import View
from torture.zygote import CRASH, Trial

RESUMES = 3
"""Sweeps until the plan must be complete: a run that failed is retried in the next sweep."""
MIN_WAIT = 15.0
"""A resumed sweep on the same machine never waits for a lease; shorter times may be due to a busy machine."""
SETTLE_SECONDS = 10.0
"""The longest life of a worker after its driver."""


def check_interrupted(trial: Trial) -> list[str]:
    """The invariants after the drivers have ended, before anything is repaired."""
    violations = check_ends(trial) + wait_for_orphans(trial)
    results = checker.acknowledged(trial)
    if not (trial.study / "experiment.json").exists() or not (trial.study / "plan.json").exists():
        return violations + (["LOST: results were acknowledged, and the folder has no plan"] if results else [])
    view = checker.look(trial.study, fit=False)
    violations += checker.check_view(view)
    violations += checker.check_acknowledged(results, view)
    return violations + checker.check_printed(trial.outputs, view)


def check_resumed(trial: Trial, reference: View | None, *words: str, seconds: float = 120.0) -> list[str]:
    """Resume until the sweep is complete, and check the finished study.

    Args:
        trial: Its drivers have ended.
        reference: The undisturbed study; None for a trainer that is not deterministic.
        words: The command that resumes; by default the command that the trial started with.
        seconds: Time limit of one sweep.
    """
    violations = []
    age_temporary_files(trial.study)
    for _ in range(RESUMES):
        started = time.monotonic()
        driver = trial.run(*words, seconds=seconds)
        if trial.lease is not None and time.monotonic() - started > 0.75 * trial.lease >= MIN_WAIT:
            violations.append(
                f"a resumed sweep took {time.monotonic() - started:.0f} s: it waited for dead claims"
            )
        if driver.ended is not None and driver.ended.status == 0:
            break
    else:
        return [*violations, f"resume: {driver.ended}: {driver.text.strip()[-400:]}"]
    return violations + check_finished(trial, reference)


def age_temporary_files(study: Path) -> None:
    """A driver removes the temporary files of killed processes after ten minutes."""
    for file in study.rglob(".*"):
        if file.is_file():
            os.utime(file, (0, 0))


def check_finished(trial: Trial, reference: View | None) -> list[str]:
    """The invariants of a finished study."""
    view = checker.look(trial.study, fit=reference is not None)
    violations = check_ends(trial) + wait_for_orphans(trial) + checker.check_view(view)
    violations += checker.check_acknowledged(checker.acknowledged(trial), view)
    violations += checker.check_printed(trial.outputs, view) + checker.check_once(view)
    violations += checker.check_leftovers(trial.study)
    if trial.report:
        violations += checker.check_report(trial.study)
    if reference is not None:
        violations += checker.check_equal(view, reference)
    return violations


def check_ends(trial: Trial) -> list[str]:
    """No driver hung, crashed or printed a traceback."""
    violations = checker.check_outputs(trial.outputs)
    for driver in trial.drivers:
        if driver.ended is not None and driver.ended.status is None and driver.ended.signal is None:
            violations.append(f"a driver hung: {driver.text.strip()[-300:]}")
        elif driver.ended is not None and driver.ended.status == CRASH and "Traceback" not in driver.text:
            violations.append("a driver crashed")
    return violations


def wait_for_orphans(trial: Trial, seconds: float = SETTLE_SECONDS) -> list[str]:
    """Workers end within seconds after their drivers."""
    end = time.monotonic() + seconds
    while (orphans := checker.check_orphans(trial)) and time.monotonic() < end:
        time.sleep(0.05)
    return orphans


def reference_of(trial: Trial) -> View:
    """Train a study without faults, and return it as the command line shows it."""
    driver = trial.run()
    assert driver.ended is not None
    assert driver.ended.status == 0, driver.text
    return checker.look(trial.study)


def after_fault(trial: Trial, reference: View | None, *words: str, seconds: float = 120.0) -> list[str]:
    """All checks after a fault, each violation once."""
    violations = check_interrupted(trial) + check_resumed(trial, reference, *words, seconds=seconds)
    return list(dict.fromkeys(violations))
