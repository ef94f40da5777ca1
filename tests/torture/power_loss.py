"""Power losses: a drive is logged with the content of its writes, and replayed up to a call.

Everything without an fsync may be lost, kept, reordered or torn (see ``disk.py``). After each power loss, the
study must open with every result that was acknowledged before, and the resumed sweep must complete. The same holds
if an fsync of the drive has failed. If the disk lies about every fsync, results may be lost, but none may change.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torture import experiments
from torture.checker import acknowledged, check_equal, check_outputs, look
from torture.disk import Disk
from torture.recovery import after_fault, reference_of
from torture.session import Session
from torture.shim import Fault, Record, read_log
from torture.zygote import Trial, base

LEASE = 2.0
"""A driver that lost its file in ``drivers/`` in the power loss is waited for this long."""
VARIANTS = {
    "no change without fsync survives": (0.0, 0.0),
    "contents survive, names do not": (1.0, 0.0),
    "names survive, contents do not": (0.0, 1.0),
    "random sectors and names": (0.5, 0.5),
    "random sectors": (0.5, 1.0),
}
"""Name -> probability that a sector, and a change of a folder, survives without fsync."""
LYING = {"lying fsync, most sectors": 0.98, "lying fsync, random sectors": 0.5}
"""Name -> probability that a sector survives on a disk that does nothing on fsync."""
SCENARIOS: dict[str, tuple[Callable[[], dict[str, Any]], int]] = {
    "sqlite": (experiments.surface, 1),
    "json": (partial(experiments.surface, "json"), 1),
    "checkpoints": (lambda: experiments.gpt(base() / "text"), 6),
}
"""Name -> experiment, and the share of its faults, because a drive of ``checkpoints`` is slow."""


def run(session: Session) -> None:
    """Lose power at every call x every variant, or at a stride of them; and after each failed fsync."""
    for name, (make_table, share) in SCENARIOS.items():
        if session.only not in name or (session.quick and name == "checkpoints"):
            continue
        scenario = PowerLoss(name, make_table, session)
        records = scenario.records
        cuts = range(1, len(records) + 1)
        for cut, variant in session.every([(cut, variant) for cut in cuts for variant in VARIANTS], share):
            scenario.lose_power(records[:cut], variant)
        for cut, variant in session.every([(cut, variant) for cut in cuts for variant in LYING], share):
            scenario.lie(records[:cut], variant)
        count = sum(record.operation == "fsync" for record in records)
        for nth, variant in session.every([(nth, variant) for nth in range(1, count + 1) for variant in VARIANTS]):
            scenario.fail_fsync(nth, variant)


class PowerLoss:
    """Power losses in drives of one experiment.

    Args:
        name: The scenario.
        make_table: Makes the experiment.
        session: Counts the faults.
    """

    def __init__(self, name: str, make_table: Callable[[], dict[str, Any]], session: Session) -> None:
        self._name, self._make_table, self._session = name, make_table, session
        with session.trial(Trial(make_table(), "power", lease=LEASE)) as trial:
            trial.faults.arm(trial.folder, log=trial.folder / "log", content=True)
            self._reference = reference_of(trial)
            self._folder = trial.folder
            self.records = list(read_log(trial.folder / "log"))
            """The calls of an undisturbed drive."""

    def fail_fsync(self, nth: int, variant: str) -> None:
        """One drive to its end in which an fsync fails, then a power loss, and the resumption."""
        with self._session.trial(Trial(self._make_table(), "power", lease=LEASE)) as trial:
            log = trial.folder / "log"
            trial.faults.arm(trial.folder, Fault("fsync", "error", nth, errno.EIO), log=log, content=True)
            trial.run()
            self._folder = trial.folder
            records = list(read_log(log))
        self.lose_power(records, variant, f"failed fsync {nth}")

    def lose_power(self, records: list[Record], variant: str, before: str = "") -> None:
        """One power loss after the last of the records, and the resumption."""
        disk = replayed(records)
        with self._session.trial(Trial(self._make_table(), "power", lease=LEASE)) as trial:
            self._restore(trial, disk, *VARIANTS[variant], f"{len(records)} {variant} {before}")
            trial.acknowledged_file.write_text(disk.read(self._folder / "acknowledged.jsonl"))
            trial.earlier_outputs.append(disk.read(self._folder / "output-0.txt"))
            kind = f"failed fsync, {variant}" if before else variant
            self._check(kind, before, records, lambda: after_fault(trial, self._reference))
            self._session.tally.acknowledged += len(acknowledged(trial))

    def lie(self, records: list[Record], variant: str) -> None:
        """One power loss of a disk that has ignored every fsync."""
        with self._session.trial(Trial(self._make_table(), "power", lease=LEASE)) as trial:
            self._restore(trial, replayed(records, lies=True), LYING[variant], 1.0, f"{len(records)} {variant}")
            self._check(variant, "", records, lambda: self._check_unchanged(trial))

    def _check(self, kind: str, before: str, records: list[Record], check: Callable[[], list[str]]) -> None:
        last = f"{records[-1].operation} of {Path(records[-1].path).name}"
        fault = f"{before or kind}, after call {len(records)}, {last}"
        self._session.check(f"power: {self._name}", kind, fault, check)

    def _restore(self, trial: Trial, disk: Disk, contents: float, names: float, seed: str) -> None:
        """Write the files that survive into the study of a trial."""
        draw = random.Random(f"{self._session.seed} {seed}")
        for path, content in disk.lose_power(self._folder / "study", contents, names, draw).items():
            file = trial.study / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def _check_unchanged(self, trial: Trial) -> list[str]:
        """No result has changed. The resumed sweep ends with the undisturbed results, or with a message."""
        expected = self._reference.compared()["results"]
        results = look(trial.study, fit=False).compared()["results"]
        violations = [f"CHANGED: run {run}" for run, result in results.items() if result != expected.get(run)]
        driver = trial.run()
        violations += check_outputs(trial.outputs)
        assert driver.ended is not None
        complete = driver.ended.status == 0
        self._session.tally.classify(f"power: {self._name}", "lying fsync", "complete" if complete else "refused")
        if complete:
            return violations + check_equal(look(trial.study), self._reference)
        refused = driver.ended.status in (1, 2) and "error" in driver.text.lower()
        return violations + ([] if refused else [f"no message: {driver.ended}: {driver.text.strip()[-300:]}"])


def replayed(records: list[Record], lies: bool = False) -> Disk:
    """The disk after these calls."""
    disk = Disk(lies)
    for record in records:
        disk.replay(record)
    return disk
