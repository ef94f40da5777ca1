"""What goes to the terminal: answers to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from flops_fit_core.records import Diagnostic, LawFit
    from flops_fit_core.report import DataTable


def keep_for_answers() -> None:
    """Keep standard output for what was asked for.

    What C libraries, subprocesses and workers write to file descriptor 1 goes to standard error from here on;
    only this process's ``sys.stdout`` still leads to where the output goes.
    """
    before = sys.stdout
    try:
        before.flush()
        kept = os.dup(before.fileno())
        os.dup2(sys.stderr.fileno(), before.fileno())
    except (AttributeError, OSError, ValueError):
        return  # no standard output or error, or none that is a file
    sys.stdout = open(  # noqa: SIM115, PTH123  a descriptor, open until the process ends
        kept, "w", encoding=before.encoding, errors=before.errors, buffering=1 if before.line_buffering else -1
    )


_answers: TextIO | None = None


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Within, answers go to standard output, and what anything else prints goes to standard error."""
    global _answers
    before, _answers = _answers, sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        answers, _answers = _answers, before
        answers.flush()


def console(error: bool = False) -> Console:
    """A terminal's, or 160 columns where the output goes to a file or a pipe."""
    from rich.console import Console

    file = sys.stderr if error else _answers or sys.stdout
    plain = Console(file=file, highlight=False)
    return plain if plain.is_terminal else Console(file=file, highlight=False, width=160)


def complain(message: str) -> None:
    """Say what is wrong, on standard error."""
    print(f"error: {message}", file=sys.stderr)  # noqa: T201


def say(message: str) -> None:
    """Tell a person something beside the answer."""
    console(error=True).print(message, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON value on standard output, for programs."""
    print(json.dumps(value, indent=2, allow_nan=False), file=_answers)


def print_csv(text: str) -> None:
    """Rows as they are, on standard output, for programs."""
    print(text, end="", file=_answers)


def print_table(table: DataTable) -> None:
    """A table for people."""
    console().print(table.rich())


def print_text(text: str) -> None:
    """A line of the answer."""
    console().print(text, markup=False, emoji=False)


NAMED = 5
"""Runs that are named where many are left out for one reason; `fit --json` has all."""


def print_notes(diagnostics: Iterable[Diagnostic]) -> None:
    """Warnings and notes, a line each."""
    for diagnostic in diagnostics:
        mark = "! " if diagnostic.severity == "warning" else "- "
        print_text(f"{mark}{diagnostic.message}")


def print_diagnostics(fit: LawFit) -> None:
    """What a person should know of the fit, and which runs it left out."""
    print_notes(fit.diagnostics)
    left_out: dict[str, list[str]] = {}
    for name, reason in fit.excluded.items():
        left_out.setdefault(reason, []).append(name)
    for reason, names in left_out.items():
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        print_text(f"  not used: {shown}: {reason}")
