"""Flipped bits, truncations and the loss of every file of a study folder, each classified.

detected: a command reports the damage. harmless: every answer is the same. silent: an answer differs, and no
message mentions it, which is a violation. A traceback is a violation too. Checkpoints, outboxes
and claims are used by a resumed sweep only: there, the results of the sweep are compared.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torture import checker, experiments
from torture.session import Session
from torture.zygote import PLUGIN, Answer, Trial, ask, base, leave_out_report, set_lease

FLIPS, TRUNCATIONS = 240, 40
"""Per file in full mode."""
QUICK = ("finished, sqlite", "killed, json", "checkpoints")
LEASE = 5.0
RESUME_SECONDS = 150.0
"""Longer than the wait for a damaged claim, which is a minute."""
IGNORED = {"seconds_left", "checkpoint_bytes", "drivers", "flops_spent", "seconds_spent"}
"""Fields of answers that depend on time, on the size of files, or on the processes that train now."""
DAMAGE = ("damaged", "checksum", "not used", "cannot be read", "unreadable", "ignored", "is missing")
"""A message with one of these words reports the damage. Notes about a fit have none of them."""
PREDICT = ("predict", "--flops", "1e20", "--json")


@dataclass(frozen=True)
class Source:
    """A study to damage."""

    name: str
    folder: Path
    files: tuple[str, ...]
    """Patterns of the files to damage."""
    resume: bool = False
    """Whether a sweep is resumed from the damaged folder, because no reading command uses these files."""
    share: int = 1


def run(session: Session) -> None:
    """Damage copies of several studies, file by file."""
    for make in (finished, killed, interrupted, outbox):
        for source in make():
            if session.only in source.name and not (session.quick and source.name not in QUICK):
                damage_files(source, session)


def finished() -> list[Source]:
    """Studies with a fit and a report."""
    sources = []
    for store in ("sqlite", "json"):
        study = keep(Trial(experiments.surface(store, runs=6), f"flips-{store}"), lambda trial: trial.run())
        sources.append(Source(f"finished, {store}", study, ("results*", "*.json", "*.jsonl", "*.sum")))
    return sources


def killed() -> list[Source]:
    """Studies with drivers that were killed in the middle: a log of the database, claims, a driver's file."""
    sources = []
    for store in ("sqlite", "json"):
        table = experiments.surface(store, runs=20)
        study = keep(Trial(table, f"flips-killed-{store}"), partial(kill_after_results, count=8))
        sources.append(Source(f"killed, {store}", study, ("results*", "plan.json", "drivers/*")))
        sources.append(
            Source(f"killed and resumed, {store}", study, ("*claims*", "drivers/*", "plan.json"), True, 6)
        )
    return sources


def interrupted() -> list[Source]:
    """A study of tiny models, killed between checkpoints."""

    def kill_with_checkpoints(trial: Trial) -> None:
        driver = trial.start()
        until(
            lambda: (
                list(trial.study.glob("checkpoints/*/step-*.pt"))
                and list(trial.study.glob("checkpoints/*/latest.pt"))
            )
        )
        driver.send(signal.SIGKILL)
        driver.wait()

    study = keep(Trial(experiments.gpt(base() / "text"), "flips-gpt"), kill_with_checkpoints)
    return [Source("checkpoints", study, ("checkpoints/*/*.pt*",), True, 6)]


def outbox() -> list[Source]:
    """A study whose workers have written results that no driver has stored."""
    from flops_fit_core.plugins.outbox import Outbox
    from flops_fit_core.records import RunResult

    def move_to_outbox(trial: Trial) -> None:
        trial.run()
        for result in checker.acknowledged(trial):
            Outbox(trial.study).put(RunResult.model_validate({key: result[key] for key in result if key != "id"}))
        for file in trial.study.glob("results*"):
            file.unlink()

    study = keep(Trial(experiments.surface(runs=4), "flips-outbox"), move_to_outbox)
    return [Source("outbox", study, ("outbox/*",), True, 6)]


def keep(trial: Trial, prepare: Callable[[Trial], Any]) -> Path:
    """Prepare a study; its folder stays until the end of the harness."""
    prepare(trial)
    trial.stop()
    return trial.study


def kill_after_results(trial: Trial, count: int) -> None:
    """Kill the driver after it has printed this many results."""
    driver = trial.start()
    until(lambda: len(checker.printed(driver.text)) >= count or driver.poll())
    driver.send(signal.SIGKILL)
    driver.wait()


def until(is_true: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.001)


# ---------------------------------------------------------------------------- damage


def damage_files(source: Source, session: Session) -> None:
    """Flip bits of each file and truncate it, and classify every damage."""
    intact, again = observe(source, None), observe(source, None)
    difference = first_difference(intact.values, again.values)
    assert intact.values == again.values, f"{source.name}: the answers differ between two readings: {difference}"
    assert not intact.failed, f"{source.name}: {intact.messages}"
    matches = {path for pattern in source.files for path in source.folder.glob(pattern) if path.is_file()}
    for path in sorted(matches):
        data = path.read_bytes()
        if path.suffix == ".lock" or path.name.endswith("-shm") or not data:
            continue
        for edit, content in session.every(damages(data, session), source.share):
            outcome = classify(intact, observe(source, (path, content)))
            kind = file_type(path)
            violations = [] if outcome in ("detected", "harmless") else [outcome]
            session.tally.classify(f"flips: {source.name}", kind, outcome.split(":")[0])
            session.tally.add(f"flips: {source.name}", kind, violations, f"{path.name}, {edit}")


def damages(data: bytes, session: Session) -> list[tuple[str, bytes | None]]:
    """Random flips and truncations, as a description and the damaged content; None deletes the file."""
    edits: list[tuple[str, bytes | None]] = [("deleted", None)]
    for _ in range(FLIPS):
        position, bit = session.random.randrange(len(data)), session.random.randrange(8)
        content = bytearray(data)
        content[position] ^= 1 << bit
        edits.append((f"bit {bit} of byte {position} of {len(data)}", bytes(content)))
    for _ in range(TRUNCATIONS):
        size = session.random.randrange(len(data))
        edits.append((f"cut to {size} of {len(data)} bytes", data[:size]))
    return edits


def file_type(path: Path) -> str:
    """``latest.pt``, ``step-*.pt``, ``outbox/*`` and so on."""
    if path.parent.name in ("outbox", "drivers", "jobs"):
        return f"{path.parent.name}/*"
    return "step-*.pt" if path.name.startswith("step-") else path.name


@dataclass(frozen=True)
class Observation:
    """Answers of the command line about a study, without values that depend on time."""

    values: dict[str, Any]
    messages: tuple[str, ...]
    failed: bool
    hung: bool
    """Whether a process died without an answer, or had none after the time limit."""


def observe(source: Source, damage: tuple[Path, bytes | None] | None) -> Observation:
    """Read, or resume and read, a copy of a study, always at the same path, with one damaged file."""
    copy = base() / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source.folder, copy)
    if damage is not None:
        path, content = damage
        damaged = copy / path.relative_to(source.folder)
        damaged.unlink()
        if content is not None:
            damaged.write_bytes(content)
    answers = resume(copy) if source.resume else []
    hung = source.resume and not answers
    if not hung and not (answers and answers[0].status):
        answers += read(copy, source.resume)
    values = {str(number): parse(answer.output) for number, answer in enumerate(answers)}
    messages = tuple(answer.messages for answer in answers)
    return Observation(values, messages, any(answer.status for answer in answers), hung or not answers)


def resume(copy: Path) -> list[Answer]:
    """Resume the sweep in a fork. The output of a sweep is not compared."""

    def prepare() -> None:
        import os

        from torture import plugin

        os.environ[plugin.ACKNOWLEDGED] = str(base() / "damaged.acknowledged")
        leave_out_report()
        set_lease(LEASE)

    answers = ask([["run", str(copy), *PLUGIN]], prepare, seconds=RESUME_SECONDS)
    return [Answer(answer.status, "", answer.messages) for answer in answers]


def read(copy: Path, after_sweep: bool) -> list[Answer]:
    folder = str(copy)
    commands: list[Sequence[str]] = [["runs", folder, "--json"]]
    if not after_sweep:
        commands += [["status", folder, "--json"], ["plan", folder, "--json", "--no-estimate"]]
        commands += [["fit", folder, "--json"], [PREDICT[0], folder, *PREDICT[1:]]]

    def follow(answers: list[Answer]) -> list[list[str]]:
        ids = [] if answers[0].status else [row["id"] for row in answers[0].json]
        return [["show", folder, *ids, "--json", *PLUGIN]] if ids else []

    return ask([[*command, *PLUGIN] for command in commands], follow=follow)


def parse(output: str) -> Any:
    """The JSON of an answer, without fields that depend on time."""
    try:
        return without_measured(json.loads(output))
    except ValueError:
        return output


def without_measured(value: Any) -> Any:
    if isinstance(value, dict):
        measured = IGNORED | checker.MEASURED
        return {key: without_measured(item) for key, item in value.items() if key not in measured}
    return [without_measured(item) for item in value] if isinstance(value, list) else value


def classify(intact: Observation, damaged: Observation) -> str:
    """``detected``, ``harmless``, ``hung``, ``traceback: ...`` or ``silent: ...``."""
    if damaged.hung:
        return "hung: a command gave no answer"
    messages = "".join(damaged.messages)
    if "Traceback" in messages:
        return f"traceback: {messages[messages.index('Traceback') :][-400:]}"
    new = texts(damaged) - texts(intact)
    if damaged.failed and not intact.failed:
        return "detected"
    if any(word in line.lower() for line in new for word in DAMAGE):
        return "detected"
    if damaged.values == intact.values:
        return "harmless"
    return f"silent: {first_difference(intact.values, damaged.values)}"


def texts(observation: Observation) -> set[str]:
    """The lines of all messages, and the notes in the answers."""
    lines = set("\n".join(observation.messages).splitlines())
    for answer in observation.values.values():
        if isinstance(answer, dict):
            lines.update(str(note) for name in ("notes", "notices") for note in answer.get(name) or ())
    return lines


def first_difference(before: Any, after: Any, path: str = "") -> str:
    """The path of the first difference, with both values."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for key in before:
            if before[key] != after[key]:
                return first_difference(before[key], after[key], f"{path}.{key}")
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (mine, other) in enumerate(zip(before, after, strict=True)):
            if mine != other:
                return first_difference(mine, other, f"{path}.{index}")
    return f"{path}: {str(before)[:80]} became {str(after)[:80]}"
