"""Errors of runs for people: grouped by message, one short line each. ``show ID`` prints an error in full."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flops_fit_core.records import RunResult

LINE_LENGTH = 70
"""The most characters of an error's line."""


@dataclass(frozen=True)
class ErrorGroup:
    """Failed runs with the same error."""

    line: str
    """Type and message, in at most :data:`LINE_LENGTH` characters."""
    ids: tuple[str, ...]

    def __str__(self) -> str:
        """``3 runs failed: OutOfMemoryError: CUDA out of memory (first: 1a2b3c)``."""
        count = "1 run" if len(self.ids) == 1 else f"{len(self.ids)} runs"
        name = self.ids[0][:6] if len(self.ids) == 1 else f"first: {self.ids[0][:6]}"
        return f"{count} failed: {self.line} ({name})"


def short_error(text: str) -> str:
    """An error's line in at most :data:`LINE_LENGTH` characters."""
    return text if len(text) <= LINE_LENGTH else f"{text[: LINE_LENGTH - 4]} ..."


def group_errors(results: Iterable[RunResult]) -> list[ErrorGroup]:
    """The errors of failed runs, the most frequent first. Errors whose short lines are equal are one group."""
    ids_by_line: dict[str, list[str]] = {}
    for result in results:
        if result.status == "failed":
            line = short_error(result.error.line if result.error else "unknown error")
            ids_by_line.setdefault(line, []).append(result.id)
    groups = [ErrorGroup(line, tuple(ids)) for line, ids in ids_by_line.items()]
    return sorted(groups, key=lambda group: -len(group.ids))
