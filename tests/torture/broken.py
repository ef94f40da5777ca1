"""Proof that every invariant can fail: each case breaks it on purpose, and the checker must report it.

A case that is not reported is a violation of the harness.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torture import checker, experiments, flips
from torture.checker import (
    View,
    check_acknowledged,
    check_equal,
    check_once,
    check_ports,
    check_printed,
    check_report,
    check_trained_once,
    check_view,
)
from torture.power_loss import replayed
from torture.recovery import (
    after_fault,
    check_finished,
    check_interrupted,
    check_resumed,
    reference_of,
    wait_for_orphans,
)
from torture.session import Session
from torture.shim import read_log
from torture.timing import random_moment, until
from torture.zygote import Answer, Trial

Case = Callable[[Session], list[str]]


def run(session: Session) -> None:
    """Run each case, and look for its expected violation."""
    with session.trial(Trial(experiments.surface(), "broken", report=True)) as trial:
        view = reference_of(trial)
        altered = alterations(view, checker.acknowledged(trial), trial.outputs[0])
    for name, (violations, expected) in altered.items():
        session.check("broken", name, name, partial(missed, violations, expected))
    for name, (case, expected) in cases().items():
        if session.only in name:
            session.check("broken", name, name, lambda: missed(case(session), expected))  # noqa: B023


def missed(violations: list[str], expected: str) -> list[str]:
    """A violation of the harness if the expected one is not among these."""
    noticed = any(expected in text for text in violations)
    return [] if noticed else [f"the checker reports no {expected!r}: {violations}"]


def alterations(view: View, results: list[dict[str, Any]], text: str) -> dict[str, tuple[list[str], str]]:
    """Violations in altered views of a finished study, each with a part of the expected one."""
    run, *_ = view.attempts
    (attempt,) = view.attempts[run]
    other = {**attempt, "loss": 1.0}
    later = {**other, "attempt": attempt["attempt"] + 1}

    def changed(*attempts: dict[str, Any]) -> View:
        return replace(view, attempts={**view.attempts, run: list(attempts)})

    superseded = changed({**attempt, "superseded": True}, later)
    other_line = text.replace("  loss ", "  loss 9", 1)
    other_plan = replace(view, planned={**view.planned, run: {}})
    unreadable = replace(view, answers=[Answer(1, "", "")])
    return {
        "lost result": (check_acknowledged(results, changed()), "LOST"),
        "changed result": (check_acknowledged(results, changed(other)), "LOST"),
        "replaced result": (check_acknowledged(results, changed(attempt, later)), "REPLACED"),
        "superseded result": (check_acknowledged(results, superseded), "REPLACED"),
        "two results of a run": (check_once(changed(attempt, later)), "has 2 finished attempts"),
        "no result of a run": (check_once(changed({**attempt, "status": "failed"})), "has 0 finished attempts"),
        "printed line without a result": (check_printed([other_line], view), "LOST: printed"),
        "result with another loss": (check_equal(changed(other), view), "results differs"),
        "another plan": (check_equal(other_plan, view), "plan differs"),
        "another fit": (check_equal(replace(view, fit={}), view), "fit differs"),
        "study that does not open": (check_view(unreadable), "cannot read"),
    }


def cases() -> dict[str, tuple[Case, str]]:
    """Name -> case, and a part of the violation that it must cause."""
    return {
        "store that acknowledges before it writes": (kill_hasty_store, "LOST"),
        "driver without fsync loses power": (lose_power_without_fsync, "LOST"),
        "store that grants every claim": (ignore_claims, "was trained 2 times"),
        "run without a result": (leave_out_run, "has 0 finished attempts"),
        "study that cannot be resumed": (refuse_always, "resume: exit 2"),
        "driver that raises an exception": (partial(run_with, crash), "TRACEBACK"),
        "driver that leaves a process": (leave_process, "orphan processes"),
        "driver that leaves a temporary file": (partial(run_with, None), "leftover files"),
        "driver that listens on every address": (listen, "listens on"),
        "driver that hangs": (hang, "hung"),
        "report that is cut off": (cut_report, "report is incomplete"),
        "store without a checksum": (flip_unchecked, "silent"),
    }


def kill_hasty_store(session: Session) -> list[str]:
    """The last acknowledged result is only in memory."""
    with session.trial(Trial(experiments.noisy("hasty", seconds=0.1), "broken")) as trial:
        driver = trial.start()
        until(lambda: trial.acknowledged_file.exists() or driver.poll())
        driver.send(signal.SIGKILL)
        driver.wait()
        return check_interrupted(trial)


def lose_power_without_fsync(session: Session) -> list[str]:
    """All calls of a drive whose fsync does nothing, and then a power loss."""
    with session.trial(Trial(experiments.surface("json"), "broken")) as trial:
        log = trial.folder / "log"
        trial.faults.arm(trial.folder, log=log, content=True)
        trial.start(before=lambda: setattr(os, "fsync", lambda handle: None)).wait()
        trial.faults.disarm()
        disk = replayed(list(read_log(log)))
        files = disk.lose_power(trial.study, 0.0, 1.0, random.Random(0))
        for path, content in files.items():
            (trial.study / path).write_bytes(content)
        return check_interrupted(trial)


def ignore_claims(session: Session) -> list[str]:
    """Two drivers train every run."""

    def grant_everything() -> None:
        from flops_fit_stores.json_file import JsonStore

        JsonStore.claim = lambda self, run_id, owner, seconds: True  # type: ignore[method-assign]
        JsonStore.fenced = False
        JsonStore.renew = lambda self, run_id, owner, seconds: True  # type: ignore[method-assign]

    with session.trial(Trial(experiments.noisy("json", seconds=0.3), "broken")) as trial:
        drivers = [trial.start(before=grant_everything) for _ in range(2)]
        for driver in drivers:
            driver.wait()
        return check_trained_once(trial)


def leave_out_run(session: Session) -> list[str]:
    """A driver ends with status 0 before the plan is complete."""

    def train_less() -> None:
        from flops_fit_core.study import sweep

        missing_jobs = sweep.missing_jobs
        sweep.missing_jobs = lambda *arguments, **options: missing_jobs(*arguments, **options)[1:]

    with session.trial(Trial(experiments.surface(), "broken")) as trial:
        trial.start(before=train_less).wait()
        return check_finished(trial, None)


def run_with(before: Callable[[], None] | None, session: Session) -> list[str]:
    """A drive with a fault of its process; without one, a temporary file is left."""
    with session.trial(Trial(experiments.surface(), "broken")) as trial:
        trial.start(before=before or (lambda: None)).wait()
        if before is None:
            (trial.study / ".plan.json.0a1b2c3d").write_text("")
        return check_finished(trial, None)


def crash() -> None:
    from flops_fit_core.study import Study

    def fail(*arguments: object, **options: object) -> None:
        raise KeyError("on purpose")

    Study.train = fail  # type: ignore[assignment,method-assign]


def leave_process(session: Session) -> list[str]:
    with session.trial(Trial(experiments.surface(), "broken")) as trial:
        trial.start(before=lambda: subprocess.Popen(["sleep", "60"], start_new_session=True) and None).wait()
        return wait_for_orphans(trial, seconds=0.1)


def refuse_always(session: Session) -> list[str]:
    """Every driver refuses the experiment."""
    with session.trial(Trial(experiments.surface(dataset={"name": "surface", "noise": 1e400}), "broken")) as trial:
        return check_resumed(trial, None)


def cut_report(session: Session) -> list[str]:
    with session.trial(Trial(experiments.surface(), "broken", report=True)) as trial:
        page = trial.study / "report" / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text("<html><body>")
        return check_report(trial.study)


def listen(session: Session) -> list[str]:
    """Ports are checked while the driver trains."""
    with session.trial(Trial(experiments.noisy(), "broken")) as trial:
        sockets = []
        driver = trial.start(before=lambda: sockets.append(socket.create_server(("0.0.0.0", 0))))
        random_moment(driver, 2, session.random, gap=0.1)
        violations = check_ports(trial)
        driver.wait()
        return violations


def hang(session: Session) -> list[str]:
    with session.trial(Trial(experiments.surface(), "broken")) as trial:
        trial.start(before=signal.pause).wait(0.5)
        return after_fault(trial, None)


def flip_unchecked(session: Session) -> list[str]:
    """A store of plain lines does not detect a changed digit."""
    with session.trial(Trial(experiments.surface("hasty"), "broken")) as trial:
        trial.run()
        file = trial.study / "hasty.jsonl"
        content = file.read_bytes().replace(b'"loss":4.', b'"loss":5.', 1)
        intact, damaged = (flips.observe(trial.study, False, *damage) for damage in ((), (file, content)))
        return [flips.classify(intact, damaged)]
