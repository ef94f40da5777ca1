"""Failed runs in few lines: errors cut to one line, and grouped by message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flops_fit_core.records import RunError, RunResult

ERROR_LENGTH = 70
"""Characters of an error in a list; ``flops-fit show`` prints all of it."""
GROUPS_SHOWN = 5
IDS_SHOWN = 3
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?", re.IGNORECASE)


def short_error(error: RunError | None, length: int = ERROR_LENGTH) -> str:
    """Type and first line of an error, cut to ``length`` characters."""
    if error is None:
        return "no error was recorded"
    first_line = error.message.strip().partition("\n")[0]
    text = error.model_copy(update={"message": first_line}).line
    return text if len(text) <= length else f"{text[: length - 3].rstrip()}..."


@dataclass(frozen=True)
class FailureGroup:
    """Runs that failed for the same reason."""

    message: str
    """The first run's error, short."""
    ids: tuple[str, ...]


def group_failures(results: Iterable[RunResult]) -> list[FailureGroup]:
    """The failed runs among ``results`` by message, largest group first. Messages may differ in their numbers."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        if result.status == "failed":
            groups.setdefault(_reason(result.error), []).append(result)
    ordered = sorted(groups.values(), key=lambda group: -len(group))
    return [FailureGroup(short_error(group[0].error), tuple(result.id for result in group)) for group in ordered]


def _reason(error: RunError | None) -> str:
    """Equal for errors that differ in numbers only. The end of a long message is often the state of the memory."""
    return "" if error is None else f"{error.type}: {_NUMBERS.sub('0', error.message)[:ERROR_LENGTH]}"


def describe_failures(results: Iterable[RunResult], folder: str) -> list[str]:
    """Lines of at most 80 characters about the failed runs; none if there are none."""
    groups = group_failures(results)
    if not groups:
        return []
    total = sum(len(group.ids) for group in groups)
    lines = [f"{_runs(total)} failed:"]
    for group in groups[:GROUPS_SHOWN]:
        lines += [f"  {group.message}", f"    {_runs(len(group.ids))}: {_ids(group.ids)}"]
    if len(groups) > GROUPS_SHOWN:
        lines.append(f"  and {len(groups) - GROUPS_SHOWN} other errors")
    lines.append(f"  in full: flops-fit show {folder} {groups[0].ids[0][:6]}")
    return lines


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _ids(ids: Sequence[str]) -> str:
    shown = ", ".join(run[:6] for run in ids[:IDS_SHOWN])
    return shown if len(ids) <= IDS_SHOWN else f"{shown} and {len(ids) - IDS_SHOWN} more"
