"""The invariants. Each function returns a list of violations, empty if the invariant holds."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture.zygote import PLUGIN, Answer, Trial, ask

LINE = re.compile(r"^\[ *\d+/\d+\]  C (\S+)  size (\d+)  (?:.*?  )?loss (\d+\.\d+)(.*)$", re.MULTILINE)
MEASURED = {
    *("finished", "seconds", "flops_per_second", "mfu", "data_wait", "peak_memory", "attempt", "trained_tokens"),
    *("versions", "superseded"),
}
"""Fields that may differ from those of an undisturbed sweep."""
LISTENS = {"tcp": "0A", "udp": "07"}
"""The state of a socket that anybody can send to, in ``/proc/net``: listening, or without a peer."""
Attempt = dict[str, Any]


@dataclass(frozen=True)
class View:
    """A study as the command line shows it."""

    answers: list[Answer]
    attempts: dict[str, list[Attempt]]
    """Run id -> the stored attempts, by number."""
    planned: dict[str, Any]
    """Run id -> the planned RunSpec."""
    fit: Any
    """The answer of ``fit --json``; None without a fit."""

    @property
    def counting(self) -> dict[str, Attempt]:
        """Run id -> the attempt that counts."""
        valid = {
            run: [item for item in items if not item.get("superseded")] for run, items in self.attempts.items()
        }
        return {run: items[-1] for run, items in valid.items() if items}

    @property
    def messages(self) -> str:
        return "".join(answer.messages for answer in self.answers)

    @property
    def failed(self) -> list[Answer]:
        """Answers with an error; a study of too few runs has no fit."""
        return [answer for answer in self.answers[:2] if answer.status]

    def compared(self) -> dict[str, Any]:
        """Everything that must not depend on faults."""
        results = {
            run: {key: attempt[key] for key in attempt if key not in MEASURED}
            for run, attempt in self.counting.items()
        }
        return {"results": results, "plan": self.planned, "fit": self.fit}


def look(study: Path, before: Callable[[], None] = lambda: None, fit: bool = True) -> View:
    """Read a study through the command line, with all attempts."""
    folder = str(study)

    def follow(answers: list[Answer]) -> list[list[str]]:
        if answers[0].status:
            return []
        ids = [row["id"] for row in answers[0].json]
        return [["show", folder, *ids, "--json", *PLUGIN]] if ids else []

    commands = [["runs", folder, "--json", *PLUGIN]]
    answers = ask(commands, before, follow)
    if fit and answers and not answers[0].status:
        answers += ask([["fit", folder, "--json", *PLUGIN]], before)
    shown = answers[1].json if len(answers) > 1 and not answers[1].status else []
    fitted = answers[2].json if len(answers) > 2 and not answers[2].status else None
    return View(
        answers,
        {
            run["id"]: sorted(run["attempts"], key=lambda attempt: attempt["attempt"])
            for run in shown
            if run["attempts"]
        },
        {run["id"]: run["run"] for run in shown},
        fitted,
    )


def acknowledged(trial: Trial) -> list[dict[str, Any]]:
    """The results that the drivers reported as stored, complete records in the order of the reports."""
    file = trial.acknowledged_file
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def printed(text: str) -> list[tuple[str, str, str]]:
    """Budget, size and loss of each printed line of a result that counts."""
    return [
        (f"{float(budget):.3g}", size, loss)
        for budget, size, loss, rest in LINE.findall(text)
        if "superseded" not in rest
    ]


def check_acknowledged(results: Sequence[dict[str, Any]], view: View) -> list[str]:
    """Every acknowledged result is stored without any change. A finished result that counted still counts."""
    violations = []
    for result in results:
        run = result["id"]
        expected = {key: value for key, value in result.items() if key not in ("id", "run")}
        same = [item for item in view.attempts.get(run, ()) if _content(item) == _content(expected)]
        if not same:
            violations.append(
                f"LOST: run {run} was acknowledged with loss {result['loss']}, and no attempt has it"
            )
        elif result["status"] != "failed" and not result.get("superseded"):
            counts = view.counting.get(run)
            if counts is None or _content(counts) != _content(expected):
                violations.append(
                    f"REPLACED: run {run} was acknowledged with loss {result['loss']}, and counts with "
                    f"{counts and counts['loss']}"
                )
    return violations


def _content(attempt: Attempt) -> str:
    """The record without the number and the mark, which a fenced store sets."""
    return json.dumps(
        {key: attempt[key] for key in attempt if key not in ("attempt", "superseded")}, sort_keys=True
    )


def check_printed(texts: Sequence[str], view: View) -> list[str]:
    """Every printed loss is that of an attempt that counts."""
    counting = {
        (f"{view.planned[run]['budget']:.3g}", size_of(view.planned[run]), f"{attempt['loss']:.4f}")
        for run, attempt in view.counting.items()
        if attempt["loss"] is not None and run in view.planned
    }
    lines = [line for text in texts for line in printed(text)]
    return [f"LOST: printed {line}, and no result that counts has it" for line in lines if line not in counting]


def size_of(run: dict[str, Any]) -> str:
    return str(run["size"])


def check_once(view: View) -> list[str]:
    """Every planned run has exactly one finished attempt that counts."""
    violations = []
    for run in view.planned:
        valid = [item for item in view.attempts.get(run, ()) if not item.get("superseded")]
        finished = [item["attempt"] for item in valid if item["status"] != "failed"]
        if len(finished) != 1:
            numbers = [(item["attempt"], item["status"]) for item in valid]
            violations.append(f"run {run} has {len(finished)} finished attempts that count: {numbers}")
    return violations


def check_trained_once(trial: Trial, limit: int = 1) -> list[str]:
    """No run was trained more often than ``limit``: no live claim was stolen."""
    file = trial.trained_file
    counts = Counter(line.split()[0] for line in file.read_text().splitlines()) if file.exists() else Counter()
    return [f"run {run} was trained {count} times" for run, count in counts.items() if count > limit]


def check_outputs(texts: Sequence[str]) -> list[str]:
    """No traceback reaches the terminal."""
    return [f"TRACEBACK: {text[text.index('Traceback') :][-600:]}" for text in texts if "Traceback" in text]


def check_view(view: View) -> list[str]:
    """The study opens without an error."""
    if not view.answers:
        return ["the commands that read the study died"]
    errors = [f"cannot read the study: {answer.messages.strip()[-400:]}" for answer in view.failed]
    return errors + check_outputs([view.messages])


def check_equal(view: View, reference: View) -> list[str]:
    """Plan, results and fit equal those of an undisturbed sweep."""
    mine, others = view.compared(), reference.compared()
    return [f"{name} differs from the undisturbed sweep" for name in mine if mine[name] != others[name]]


def check_leftovers(study: Path) -> list[str]:
    """No temporary file, driver's file or outbox remains after a finished sweep."""
    paths = (path.relative_to(study) for path in study.rglob("*") if path.name.startswith("."))
    names = [path for path in paths if path.parts[0] != "slurm"]  # submitit keeps its scripts as logs
    names += [path.relative_to(study) for name in ("drivers", "outbox") for path in (study / name).glob("*")]
    return [f"leftover files: {', '.join(map(str, names))}"] if names else []


def check_report(study: Path) -> list[str]:
    """The page of the report is complete."""
    page = study / "report" / "index.html"
    complete = page.exists() and page.read_text().rstrip().endswith("</html>")
    return [] if complete else ["the page of the report is incomplete"]


def check_orphans(trial: Trial) -> list[str]:
    """No process of the trial is alive after its drivers have ended."""
    alive = []
    for pid in trial.processes():
        with contextlib.suppress(OSError):
            alive.append(
                f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()[:120]}"
            )
    return [f"orphan processes: {alive}"] if alive else []


def check_ports(trial: Trial) -> list[str]:
    """No process of the trial listens on an address other than loopback."""
    violations = []
    for pid in trial.processes():
        with contextlib.suppress(OSError):
            sockets = {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
            for table in ("tcp", "tcp6", "udp", "udp6"):
                for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                    fields = line.split()
                    address, is_listening = fields[1].partition(":")[0], fields[3] == LISTENS[table[:3]]
                    loopback = address.endswith("7F") or address == "0" * 24 + "01000000"
                    if is_listening and not loopback and f"socket:[{fields[9]}]" in sockets:
                        violations.append(f"process {pid} listens on {fields[1]}")
    return violations
