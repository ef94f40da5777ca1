"""Power losses: a drive is logged with the content of its writes, and replayed up to a call.

Everything without an fsync may be lost, kept, reordered or torn (see ``disk.py``). After each power loss, the
study must open with every result that was acknowledged before, and the resumed sweep must complete.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torture import experiments
from torture.checker import View, acknowledged
from torture.disk import Disk
from torture.recovery import after_fault, reference_of
from torture.session import Session
from torture.shim import Record, read_log
from torture.zygote import Trial, base

LEASE = 5.0
VARIANTS = {
    "no change without fsync survives": (0.0, 0.0),
    "contents survive, names do not": (1.0, 0.0),
    "names survive, contents do not": (0.0, 1.0),
    "random sectors and names": (0.5, 0.5),
    "random sectors": (0.5, 1.0),
}
"""Name -> probability that a sector, and a change of a folder, survives without fsync."""
SCENARIOS: dict[str, tuple[Callable[[], dict[str, Any]], int]] = {
    "sqlite": (experiments.surface, 1),
    "json": (partial(experiments.surface, "json"), 1),
    "checkpoints": (lambda: experiments.gpt(base() / "text"), 6),
}
"""Name -> experiment, and the share of its faults, because a drive of ``checkpoints`` is slow."""


def run(session: Session) -> None:
    """Lose power at every call x every variant, or at a stride of them."""
    for name, (make_table, share) in SCENARIOS.items():
        if session.only not in name:
            continue
        with session.trial(Trial(make_table(), "power")) as trial:
            log = trial.folder / "log"
            trial.faults.arm(trial.folder, log=log, content=True)
            driver = trial.run()
            assert driver.ended is not None
            assert driver.ended.status == 0, driver.text
            trial.faults.disarm()
            records = list(read_log(log))
            folder = trial.folder
        with session.trial(Trial(make_table(), "power")) as trial:
            reference = reference_of(trial)
        cuts = [(cut, variant) for cut in range(1, len(records) + 1) for variant in VARIANTS]
        for cut, variant in session.every(cuts, share):
            lose_power(records[:cut], folder, variant, name, reference, session)


def lose_power(
    records: list[Record], folder: Path, variant: str, name: str, reference: View, session: Session
) -> None:
    """One power loss after the last of the records, and the resumption."""
    disk = Disk()
    for record in records:
        disk.replay(record)
    draw = random.Random(f"{session.seed} {len(records)} {variant}")
    with session.trial(Trial(SCENARIOS[name][0](), "power", lease=LEASE)) as trial:
        for path, content in disk.lose_power(folder / "study", *VARIANTS[variant], draw).items():
            file = trial.study / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        trial.acknowledged_file.write_text(disk.read(folder / "acknowledged.jsonl"))
        trial.earlier_outputs.append(disk.read(folder / "output-0.txt"))
        fault = f"{variant}, after call {len(records)}, {records[-1].operation} of {Path(records[-1].path).name}"
        session.check(f"power: {name}", variant, fault, lambda: after_fault(trial, reference))
        session.tally.acknowledged += len(acknowledged(trial))
