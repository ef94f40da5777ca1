"""Read-only mounts, another user, and umasks. Needs root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torture import experiments
from torture.checker import acknowledged as acknowledged_results
from torture.checker import check_acknowledged, check_outputs, check_view, look
from torture.recovery import after_fault
from torture.session import Session
from torture.timing import random_moment
from torture.zygote import PLUGIN, Trial, ask

OTHER = "nobody"  # plain: allow (the name of a user)
UMASKS = (0o000, 0o022, 0o077)

ROUNDS = 4
"""Rounds per scenario in full mode."""


def missing_requirement() -> str | None:
    """A missing requirement of this part; None if it can run."""
    if os.geteuid() != 0:
        return "read-only mounts and other users need root"
    probe = Path(os.environ["TORTURE_BASE"]) / "mount"
    probe.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "--bind", probe, probe], capture_output=True, text=True)
    if done.returncode:
        return f"no file system can be mounted: {done.stderr.strip()}"
    subprocess.run(["umount", probe], check=True)
    return None


def run(session: Session) -> None:
    """Each scenario for each store."""
    if (missing := missing_requirement()) is not None:
        session.tally.skip("access", missing)
        return
    for store in ("sqlite", "json"):
        for kind, check in scenarios().items():
            for number in range(session.number(ROUNDS)):
                if session.only in f"{store}, {kind}":
                    with session.trial(Trial(experiments.surface(store), "access")) as trial:
                        trial.folder.chmod(0o777)
                        session.check(f"access: {store}", kind, f"round {number}", partial(check, trial, session))
                        session.tally.acknowledged += len(acknowledged_results(trial))


def scenarios() -> dict[str, Callable[[Trial, Session], list[str]]]:
    kinds: dict[str, Callable[[Trial, Session], list[str]]] = {
        "finished, read-only mount": partial(read_mounted, kill=False),
        "killed, read-only mount": partial(read_mounted, kill=True),
        "killed, read-only mount, umask 077": partial(read_mounted, kill=True, umask=0o077),
    }
    for umask in UMASKS:
        kinds[f"read by another user, umask {umask:03o}"] = partial(read_as_other, umask=umask)
        kinds[f"resumed by another user, umask {umask:03o}"] = partial(resume_as_other, umask=umask)
    return kinds


def train(trial: Trial, session: Session, kill: bool, umask: int = 0o022) -> None:
    """Train a study with a umask; the driver is killed after some results."""
    driver = trial.start(before=lambda: set_umask(umask))
    if kill:
        random_moment(driver, 4, session.random, gap=0.02)
        driver.send(signal.SIGKILL)
    driver.wait()


def set_umask(umask: int) -> None:
    os.umask(umask)


def become_other() -> None:
    """Give up all rights of root, in a forked process."""
    user = pwd.getpwnam(OTHER)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def read_mounted(trial: Trial, session: Session, kill: bool, umask: int = 0o022) -> list[str]:
    """A study on a read-only mount gives the answers of a writable copy, and does not change."""
    train(trial, session, kill, umask)
    if not (trial.study / "plan.json").exists():
        return []
    copy = trial.folder / "copy"
    shutil.copytree(trial.study, copy)
    before = contents(trial.study)
    with mounted_read_only(trial.study):
        view = look(trial.study)
        violations = check_view(view) + check_acknowledged(acknowledged_results(trial), view)
        violations += (
            [] if view.compared() == look(copy).compared() else ["the answers differ from a writable copy's"]
        )
        violations += refused_commands(trial.study)
    if contents(trial.study) != before:
        violations.append("files on the read-only mount have changed")
    return violations + after_fault(trial, None)


def refused_commands(study: Path) -> list[str]:
    """Reading commands succeed; those that must write end with a message."""
    folder = str(study)
    commands = [["status", folder, *PLUGIN], ["report", folder, *PLUGIN], ["run", folder, *PLUGIN]]
    answers = ask(commands)
    if len(answers) < len(commands):
        return ["the commands on the read-only mount died"]
    violations = check_outputs([answer.messages for answer in answers])
    if answers[0].status:
        violations.append(f"status: exit {answers[0].status}: {answers[0].messages.strip()[-300:]}")
    for words, answer in zip(commands[1:], answers[1:], strict=True):
        if answer.status not in (0, 1, 2) or (answer.status and not answer.messages.strip()):
            violations.append(f"{words[0]}: exit {answer.status} without a message")
    return violations


def read_as_other(trial: Trial, session: Session, umask: int) -> list[str]:
    """Another user reads a study if its umask lets others read, and gets a message otherwise."""
    train(trial, session, kill=False, umask=umask)
    view, mine = look(trial.study, before=become_other), look(trial.study)
    if umask == 0o077:
        violations = check_outputs([view.messages])
        return violations + ([] if view.failed or not view.attempts else ["umask 077 lets another user read"])
    violations = check_view(view)
    return violations + ([] if view.compared() == mine.compared() else ["another user gets other answers"])


def resume_as_other(trial: Trial, session: Session, umask: int) -> list[str]:
    """Another user resumes a killed study if the umask lets others write, and gets a message otherwise."""
    train(trial, session, kill=True, umask=umask)

    def become_other_with_umask() -> None:
        become_other()
        set_umask(umask)

    driver = trial.start(before=become_other_with_umask)
    ended = driver.wait(60)
    violations = check_outputs([driver.text])
    if umask == 0 and ended.status != 0:
        violations.append(f"the other user cannot resume: {ended}: {driver.text.strip()[-300:]}")
    if umask != 0 and (ended.status in (0, None) or "error" not in driver.text.lower()):
        violations.append(f"no message for a user without write access: {ended}: {driver.text.strip()[-300:]}")
    return violations + after_fault(trial, None)


@contextmanager
def mounted_read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
