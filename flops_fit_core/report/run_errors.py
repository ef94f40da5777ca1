"""Errors of runs for people: grouped by message, one short line each. ``show ID`` prints an error in full."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flops_fit_core.errors import raised_at
from flops_fit_core.records import RunError, RunResult

LINE_LENGTH = 70
"""The most characters of an error's line."""
FULL_LENGTH = 400
GROUPS_SHOWN = 5
IDS_SHOWN = 3
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class ErrorGroup:
    """Failed runs with the same error. Numbers in the message may differ, such as sizes of allocations."""

    line: str
    """Type and message of the first run's error, in at most :data:`LINE_LENGTH` characters."""
    full: str
    """The same line in at most :data:`FULL_LENGTH` characters."""
    ids: tuple[str, ...]
    where: str
    """The line of the user's code that raised the first run's error; empty if it is unknown."""

    def __str__(self) -> str:
        """``3 runs failed: OutOfMemoryError: CUDA out of memory (first: 1a2b3c)``."""
        name = self.ids[0][:6] if len(self.ids) == 1 else f"first: {self.ids[0][:6]}"
        return f"{_count_runs(len(self.ids))} failed: {self.line} ({name})"


def short_error(text: str, length: int = LINE_LENGTH) -> str:
    """A text in at most ``length`` characters."""
    return text if len(text) <= length else f"{text[: length - 3].rstrip()}..."


def describe_error(error: RunError | None) -> str:
    """Type and first line of an error, in at most :data:`LINE_LENGTH` characters."""
    return short_error(_first_line(error))


def _first_line(error: RunError | None) -> str:
    if error is None:
        return "unknown error"
    return error.model_copy(update={"message": error.message.strip().partition("\n")[0]}).line


def group_errors(results: Iterable[RunResult]) -> list[ErrorGroup]:
    """The errors of failed runs, the most frequent first."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        if result.status == "failed":
            line = "" if result.error is None else result.error.line
            groups.setdefault(_NUMBERS.sub("0", line)[:LINE_LENGTH], []).append(result)
    ordered = sorted(groups.values(), key=lambda group: -len(group))
    return [_describe_group(group) for group in ordered]


def _describe_group(results: Sequence[RunResult]) -> ErrorGroup:
    error = results[0].error
    where = "" if error is None else raised_at(error.traceback)
    return ErrorGroup(
        describe_error(error),
        short_error(_first_line(error), FULL_LENGTH),
        tuple(result.id for result in results),
        where,
    )


def summarise_errors(results: Iterable[RunResult]) -> list[str]:
    """A line for each of the most frequent errors, and one that counts the others."""
    groups = group_errors(results)
    others = len(groups) - GROUPS_SHOWN
    return [*map(str, groups[:GROUPS_SHOWN]), *([f"and {others} other errors"] if others > 0 else [])]


def describe_failures(results: Iterable[RunResult], folder: str, *, in_full: bool = False) -> list[str]:
    """Lines about the failed runs, of at most 80 characters except for file names; none if there are none.

    ``in_full``: all of the line of an error, with its remedy, if there is only one error.
    """
    groups = group_errors(results)
    if not groups:
        return []
    lines = [f"{_count_runs(sum(len(group.ids) for group in groups))} failed:"]
    for group in groups[:GROUPS_SHOWN]:
        line = group.full if in_full and len(groups) == 1 else group.line
        lines += [f"  {line}", *([f"    raised in {group.where}"] if group.where else [])]
        lines.append(f"    {_count_runs(len(group.ids))}: {_join_ids(group.ids)}")
    if len(groups) > GROUPS_SHOWN:
        lines.append(f"  and {len(groups) - GROUPS_SHOWN} other errors")
    lines.append(f"  in full: flops-fit show {folder} {groups[0].ids[0][:6]}")
    return lines


def _count_runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _join_ids(ids: Sequence[str]) -> str:
    shown = ", ".join(run[:6] for run in ids[:IDS_SHOWN])
    return shown if len(ids) <= IDS_SHOWN else f"{shown} and {len(ids) - IDS_SHOWN} more"
