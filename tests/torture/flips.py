"""Flipped bits, zeros, truncations and the loss of every file of a study folder, each classified.

detected: a command reports the damage. harmless: every answer is the same. silent: the answer of a command
differs, and this command does not mention the damage, which is a violation. A traceback is a violation too. A
resumed sweep alone uses checkpoints, outboxes and claims: its results must not differ at all. Only Slurm uses the
files of queued jobs (part ``clusters``): here, ``store check`` reads them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torture import checker, experiments, plugin
from torture.session import Session
from torture.timing import until
from torture.zygote import PLUGIN, Answer, Trial, ask, base, set_lease

FLIPS, TRUNCATIONS, ZEROS = 240, 30, 10
"""Per file in full mode."""
QUICK = ("finished, sqlite", "killed, json", "checkpoints", "queued jobs")
LEASE = 2.0
RESUME_SECONDS = 90.0
IGNORED = {"seconds_left", "checkpoint_bytes", "drivers", "flops_spent", "seconds_spent"}
"""Fields of answers that depend on time, on the size of files, or on the processes that train now."""
DAMAGE = ("damaged", "checksum", "not used", "cannot be read", "unreadable", "ignored", "is missing")
"""A message with one of these words reports the damage. Notes about a fit have none of them."""


@dataclass(frozen=True)
class Source:
    """A study to damage."""

    name: str
    prepare: Callable[[Trial], Any]
    table: Callable[[], dict[str, Any]]
    files: tuple[str, ...]
    """Patterns of the files to damage."""
    resume: bool = False
    """Whether a sweep is resumed from the damaged folder, because no reading command uses these files."""
    share: int = 1


def sources() -> list[Source]:
    studies = []
    for store in ("sqlite", "json"):
        few, many = partial(experiments.surface, store), partial(experiments.surface, store, runs=20)
        files = ("results*", "*.json", "*.jsonl", "*.sum")
        killed = ("results*", "plan.json", "drivers/*")
        resumed = ("*claims*", "drivers/*", "plan.json")
        studies += [
            Source(f"finished, {store}", Trial.run, few, files),
            Source(f"killed, {store}", kill_after_results, many, killed),
            Source(f"killed and resumed, {store}", kill_after_results, many, resumed, True, 6),
        ]
    tiny = ("checkpoints/*/*.pt*", "checkpoints/*/claim", "model_check.json", "flops_per_token.json")
    return [
        *studies,
        Source("checkpoints", kill_with_checkpoints, lambda: experiments.gpt(base() / "text"), tiny, True, 6),
        Source("outbox", move_to_outbox, partial(experiments.surface, runs=4), ("outbox/*",), True, 6),
        Source("queued jobs", queue_job, experiments.surface, ("jobs/*",)),
    ]


def run(session: Session) -> None:
    """Damage copies of several studies, file by file."""
    for source in sources():
        if session.only in source.name and not (session.quick and source.name not in QUICK):
            with session.trial(Trial(source.table(), "flips", lease=LEASE)) as trial:
                source.prepare(trial)
                damage_files(source, trial.study, session)


def kill_after_results(trial: Trial) -> None:
    """Kill the driver after 8 results: a log of the database, claims and a driver's file remain."""
    driver = trial.start()
    until(lambda: len(checker.printed(driver.text)) >= 8 or driver.poll())
    driver.send(signal.SIGKILL)
    driver.wait()


def kill_with_checkpoints(trial: Trial) -> None:
    """Kill the driver of tiny models between checkpoints."""
    driver = trial.start()
    folder = trial.study / "checkpoints"
    assert until(lambda: all(any(folder.glob(f"*/{name}")) for name in ("step-*.pt", "latest.pt")))
    driver.send(signal.SIGKILL)
    driver.wait()


def move_to_outbox(trial: Trial) -> None:
    """Let workers have written all results, and no driver have stored them."""
    from flops_fit_core.plugins.outbox import Outbox
    from flops_fit_core.records import RunResult

    trial.run()
    for result in checker.acknowledged(trial):
        Outbox(trial.study).put(RunResult.model_validate({key: result[key] for key in result if key != "id"}))
    for file in trial.study.glob("results*"):
        file.unlink()


def queue_job(trial: Trial) -> None:
    """Leave the files of a job in a scheduler's queue."""
    from flops_fit_core.plugins.queued_jobs import QueuedJobs
    from flops_fit_core.study.directory import StudyFolder

    trial.run()
    plan, jobs = StudyFolder(trial.study).plan(), QueuedJobs(trial.study)
    queued = jobs.add(plan.jobs({run.id for run in plan.runs}, {})[0], "{}")
    jobs.write_state(queued, jobs.state(queued))


# ---------------------------------------------------------------------------- damage


def damage_files(source: Source, study: Path, session: Session) -> None:
    """Flip bits of each file and truncate it, and classify every damage."""
    intact, again = observe(study, source.resume), observe(study, source.resume)
    assert intact.values == again.values, (
        f"{source.name}: two readings differ: {first_difference(intact.values, again.values)}"
    )
    assert not intact.failed, f"{source.name}: {intact.messages}"
    files = {path for pattern in source.files for path in study.glob(pattern) if path.is_file()}
    for path in sorted(files):
        data = path.read_bytes()
        if path.suffix == ".lock" or path.name.endswith("-shm") or not data:
            continue
        for edit, content in session.every(damages(data, session), source.share):
            outcome = classify(intact, observe(study, source.resume, path, content))
            kind = file_type(path)
            violations = [] if outcome in ("detected", "harmless") else [outcome]
            session.tally.classify(f"flips: {source.name}", kind, outcome.split(":")[0])
            session.tally.add(f"flips: {source.name}", kind, violations, f"{path.name}, {edit}")


def damages(data: bytes, session: Session) -> list[tuple[str, bytes | None]]:
    """Random flips, truncations and zeros, as a description and the damaged content; None deletes the file."""
    edits: list[tuple[str, bytes | None]] = [("deleted", None)]
    for _ in range(FLIPS):
        position, bit = session.random.randrange(len(data)), session.random.randrange(8)
        content = bytearray(data)
        content[position] ^= 1 << bit
        edits.append((f"bit {bit} of byte {position} of {len(data)}", bytes(content)))
    for _ in range(TRUNCATIONS):
        size = session.random.randrange(len(data))
        edits.append((f"cut to {size} of {len(data)} bytes", data[:size]))
    for _ in range(ZEROS):
        size = session.random.randrange(len(data))
        edits.append((f"zeros from byte {size} of {len(data)}", data[:size].ljust(len(data), b"\0")))
    return edits


def file_type(path: Path) -> str:
    """``latest.pt``, ``step-*.pt``, ``outbox/*`` and so on."""
    if path.parent.name in ("outbox", "drivers", "jobs"):
        return f"{path.parent.name}/*"
    return "step-*.pt" if path.name.startswith("step-") else path.name


@dataclass(frozen=True)
class Observation:
    """Answers of the command line about a study. The keys are commands."""

    values: dict[str, Any]
    """Without values that depend on time."""
    messages: dict[str, str]
    failed: set[str]
    """Commands with an exit status other than 0."""
    hung: bool
    """Whether a process died without an answer, or had none after the time limit."""


def observe(study: Path, resumes: bool, path: Path | None = None, content: bytes | None = None) -> Observation:
    """Read, or resume and read, a copy of a study, always at the same path.

    Args:
        study: The study.
        resumes: Whether a sweep is resumed from the copy first.
        path: The file to damage.
        content: Its damaged content; None deletes it.
    """
    copy = base() / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(study, copy)
    if path is not None:
        damaged = copy / path.relative_to(study)
        damaged.unlink()
        if content is not None:
            damaged.write_bytes(content)
    answers = resume(copy) if resumes else {}
    hung = resumes and not answers
    if not hung and not any(answer.status for answer in answers.values()):
        reading = read(copy, resumes)
        answers, hung = answers | reading, not reading
    return Observation(
        {command: parse(answer.output) for command, answer in answers.items() if command not in ("run", "store")},
        {command: answer.messages + answer.output * (command == "store") for command, answer in answers.items()},
        {command for command, answer in answers.items() if answer.status},
        hung,
    )


def resume(copy: Path) -> dict[str, Answer]:
    """Resume the sweep in a fork."""

    def prepare() -> None:
        os.environ[plugin.ACKNOWLEDGED] = str(base() / "damaged.acknowledged")
        os.environ["FLOPS_FIT_REPORT"] = "0"
        set_lease(LEASE)

    answers = ask([["run", str(copy), *PLUGIN]], prepare, seconds=RESUME_SECONDS)
    return {"run": answers[0]} if answers else {}


def read(copy: Path, after_sweep: bool) -> dict[str, Answer]:
    """The answers of all reading commands; after a sweep, its results only."""
    folder = str(copy)
    commands: list[Sequence[str]] = [["runs", folder, "--json"]]
    if not after_sweep:
        commands += [["status", folder, "--json"], ["plan", folder, "--json", "--no-estimate"]]
        commands += [["fit", folder, "--json"], ["predict", folder, "--flops", "1e20", "--json"]]
        commands += [["store", "check", folder]]

    def follow(answers: list[Answer]) -> list[list[str]]:
        ids = [] if answers[0].status else [row["id"] for row in answers[0].json]
        return [["show", folder, *ids, "--json", *PLUGIN]] if ids else []

    answers = ask([[*command, *PLUGIN] for command in commands], follow=follow)
    return dict(zip([*(command[0] for command in commands), "show"], answers, strict=False))


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
    """``detected``, ``harmless``, ``hung: ...``, ``traceback: ...`` or ``silent: ...``."""
    if damaged.hung:
        return "hung: a command gave no answer"
    messages = "".join(damaged.messages.values())
    if "Traceback" in messages:
        return f"traceback: {messages[messages.index('Traceback') :][-400:]}"
    reporting = {command for command in damaged.messages if reports_damage(command, intact, damaged)}
    for command, value in damaged.values.items():
        if command not in reporting and value != intact.values.get(command):
            return f"silent: {command}{first_difference(intact.values.get(command), value)}"
    return "detected" if reporting else "harmless"


def reports_damage(command: str, intact: Observation, damaged: Observation) -> bool:
    """Whether the command fails with a message, or a new line of its messages or notes is about damage."""
    if command in damaged.failed - intact.failed:
        return bool(damaged.messages[command].strip())
    new = lines(command, damaged) - lines(command, intact)
    return any(word in line.lower() for line in new for word in DAMAGE)


def lines(command: str, observation: Observation) -> set[str]:
    """The lines of a command's messages, and the notes in its answer."""
    answer = observation.values.get(command)
    notes = [answer.get(name) or () for name in ("notes", "notices")] if isinstance(answer, dict) else []
    messages = observation.messages.get(command, "").splitlines()
    return {*messages, *(str(note) for texts in notes for note in texts)}


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
