"""The live view as lines of text of a given width, for terminals, logs and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flops_fit_core import numbers
from flops_fit_core.plugins.utilities import escape_controls
from flops_fit_core.records import Progress, RunResult, RunSpec
from flops_fit_core.report.run_errors import describe_error, group_errors
from flops_fit_core.study.live.state import Snapshot

RUNNING_SHOWN = 8
"""The most runs in training that are listed."""
SYMBOLS = ("━", "─", "…")
ASCII_SYMBOLS = ("#", "-", "...")
"""Done, remaining, and the mark of a cut text."""


@dataclass(frozen=True)
class Line:
    """A line of the view and its style in a terminal."""

    text: str
    style: str = ""


def result_line(
    result: RunResult,
    position: int,
    total: int,
    *,
    remaining: float | None = None,
    width: int | None = None,
    elsewhere: bool = False,
) -> str:
    """A finished run in a line: ``[7/23]  C 4e11  size 24  loss 1.6590  N 27.0K  D 1.85M  42 s``.

    Args:
        result: The run.
        position: Number of runs that are done, this one included.
        total: Number of runs of the plan.
        remaining: Estimated time left, in seconds.
        width: The most characters; None for all.
        elsewhere: Whether another driver of the study has trained it.
    """
    run = result.run
    parts = [f"[{position:>{len(str(total))}}/{total}]  C {numbers.scientific(run.budget)}", f"size {run.size}"]
    if run.seed:
        parts.append(f"seed {run.seed}")
    driver = ["other process"] if elsewhere else []
    if result.status == "failed":
        parts += [f"FAILED {result.id[:6]}", *driver, describe_error(result.error)]
    else:
        parts.append("DIVERGED" if result.loss is None else f"loss {numbers.loss(result.loss)}")
        parts += [*driver, f"N {numbers.count(run.params)}", f"D {numbers.count(run.tokens)}"]
        parts.append(numbers.duration(result.seconds))
    if remaining is not None and position < total:
        parts.append(f"about {whole_duration(remaining)} left")
    parts = [_one_line(part) for part in parts]
    if width is None:
        return "  ".join(parts)
    return cut("  ".join(parts), width) if result.status == "failed" else cut(join_parts(parts, width), width)


def view_lines(snapshot: Snapshot, width: int, *, symbols: Sequence[str] = SYMBOLS) -> list[Line]:
    """The live view. No line is longer than ``width``."""
    lines = [
        Line(_headline(snapshot, width, symbols), "bold"),
        Line(_times(snapshot, width)),
        *(Line(text) for text in _running_lines(snapshot, width, symbols)),
    ]
    if snapshot.best is not None:
        run = snapshot.best.run
        parts = [
            f"best loss  {numbers.loss(snapshot.best.loss)}",
            f"C {numbers.scientific(run.budget)}",
            f"N {numbers.count(run.params)}",
            f"D {numbers.count(run.tokens)}",
        ]
        lines.append(Line(join_parts(parts, width)))
    if snapshot.law:
        lines.append(Line(f"law so far {snapshot.law}"))
    lines += [Line(text, "red") for text in _failed_lines(snapshot)]
    return [Line(cut(_one_line(line.text), width, symbols[2]), line.style) for line in lines]


def whole_duration(seconds: float) -> str:
    """A duration without tenths of seconds: ``6 s``, ``3 min 20 s``."""
    return f"{round(seconds)} s" if seconds < 59.5 else numbers.duration(seconds)


def join_parts(parts: Iterable[str], width: int) -> str:
    """The first parts, as many as fit."""
    text = ""
    for part in parts:
        longer = f"{text}  {part}" if text else part
        if text and len(longer) > width:
            return text
        text = longer
    return text


def cut(text: str, width: int, mark: str = "...") -> str:
    """The text, cut to ``width`` characters."""
    return text if len(text) <= width else f"{text[: max(0, width - len(mark))].rstrip()}{mark}"[:width]


def draw_bar(share: float, length: int, symbols: Sequence[str] = SYMBOLS) -> str:
    """A bar of ``length`` characters."""
    done = int(min(1.0, max(0.0, share)) * length)
    return symbols[0] * done + symbols[1] * (length - done)


def _one_line(text: str) -> str:
    return escape_controls(text).translate({ord("\n"): " ", ord("\t"): " "})


def _headline(snapshot: Snapshot, width: int, symbols: Sequence[str]) -> str:
    """Name, bar, and counts. A failed or diverged run counts as done."""
    total = len(snapshot.plan.runs)
    counts = f"{snapshot.done} of {total} runs"
    troubles = [f"{snapshot.counts[state]} {state}" for state in ("failed", "diverged") if snapshot.counts[state]]
    right = "  ".join([f"{snapshot.share_done:>4.0%}", counts, *troubles])
    name = cut(snapshot.plan.name, max(8, width - len(right) - 12), symbols[2])
    length = min(30, width - len(name) - len(right) - 4)
    if length < 6:
        return join_parts([counts, *troubles, f"{snapshot.share_done:.0%}"], width)
    return f"{name}  {draw_bar(snapshot.share_done, length, symbols)} {right}"


def _times(snapshot: Snapshot, width: int) -> str:
    estimate = snapshot.estimate
    remaining = "not yet known" if estimate is None else f"about {whole_duration(estimate.seconds)}"
    parts = [f"elapsed {whole_duration(snapshot.elapsed)}", f"remaining {remaining}"]
    workers = "" if snapshot.workers is None else _count(snapshot.workers, "worker")
    if snapshot.processes > 1:
        workers = " in ".join(filter(None, [workers, _count(snapshot.processes, "process", "processes")]))
    return join_parts([*parts, workers] if workers else parts, width)


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"


def _running_lines(snapshot: Snapshot, width: int, symbols: Sequence[str]) -> list[str]:
    shown = snapshot.running[:RUNNING_SHOWN]
    names = [_run_name(run) for run, _ in shown]
    longest = max(map(len, names), default=0)
    lines = [
        _running_line(name.ljust(longest), run, progress, width, symbols)
        for name, (run, progress) in zip(names, shown, strict=True)
    ]
    hidden = len(snapshot.running) - RUNNING_SHOWN
    return [*lines, f"  and {hidden} more in training"] if hidden > 0 else lines


def _run_name(run: RunSpec) -> str:
    seed = f" seed {run.seed}" if run.seed else ""
    return f"  C {numbers.scientific(run.budget)} size {cut(_one_line(str(run.size)), 20)}{seed}"


def _running_line(name: str, run: RunSpec, progress: Progress, width: int, symbols: Sequence[str]) -> str:
    share = progress.step / progress.steps
    loss = "loss -" if progress.loss is None else f"loss {progress.loss:.3f}"
    bar = f"{draw_bar(share, 12, symbols)} {share:>4.0%}" if width >= 60 else f"{share:>4.0%}"
    parts = [name, bar, loss]
    if progress.tokens_per_second:
        parts.append(f"{numbers.count(progress.tokens_per_second):>5} tokens/s")
        seconds = (run.tokens - progress.tokens) / progress.tokens_per_second
        parts.append(f"{whole_duration(max(0.0, seconds))} left")
    return join_parts(parts, width)


def _failed_lines(snapshot: Snapshot) -> list[str]:
    """The most frequent error."""
    groups = group_errors(snapshot.failed)
    if not groups:
        return []
    return [f"{len(groups[0].ids)} failed  {groups[0].line}"]
