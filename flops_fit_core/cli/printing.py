"""Print answers to standard output, and everything else to standard error.

Everything printed is escaped (:func:`~flops_fit_core.plugins.escape_controls`), except JSON and CSV for programs.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from flops_fit_core.plugins.terminal_text import escape_controls

if TYPE_CHECKING:
    from rich.console import Console

    from flops_fit_core.records import Diagnostic, LawFit
    from flops_fit_core.report import DataTable
    from flops_fit_core.report.answer import Answer


PLAIN_SIGNS = {"–": "-", "—": "-", "…": "...", "×": "x", "±": "+-", "≈": "~", "−": "-"}
"""Signs of answers -> text for a terminal or file that cannot encode them."""
PLAIN_ERRORS = "flops-fit-plain"


def _encode_plainly(error: UnicodeError) -> tuple[str, int]:
    """Handle characters that an encoding lacks: plain text for signs, an escape for others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    plain = (PLAIN_SIGNS.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs)
    return "".join(plain), error.end


codecs.register_error(PLAIN_ERRORS, _encode_plainly)


def reserve_stdout() -> None:
    """Reserve standard output for ``sys.stdout`` of this process. It writes text that its encoding lacks plainly.

    Output of C libraries, subprocesses and workers to file descriptor 1 goes to standard error afterwards.
    """
    stdout = sys.stdout
    try:
        stdout.flush()
        descriptor = os.dup(stdout.fileno())
        os.dup2(sys.stderr.fileno(), stdout.fileno())
    except (AttributeError, OSError, ValueError):
        return  # a stream is missing or is not a file
    sys.stdout = open(  # noqa: SIM115, PTH123  open until the process ends
        descriptor,
        "w",
        encoding=stdout.encoding,
        errors=PLAIN_ERRORS,
        buffering=1 if stdout.line_buffering else -1,
    )


def escape_other_output() -> None:
    """Escape warnings, log messages and tracebacks, which Python prints to standard error itself."""
    show_warning, show_exception = warnings.formatwarning, traceback.format_exception

    def format_warning(*args: Any, **kwargs: Any) -> str:
        return escape_controls(show_warning(*args, **kwargs))

    def print_exception(*error: Any) -> None:
        sys.stderr.write(escape_controls("".join(show_exception(*error))))

    class EscapingFormatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return escape_controls(super().format(record))

    warnings.formatwarning = format_warning
    sys.excepthook = print_exception
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(EscapingFormatter())


_answers: TextIO | None = None


@contextlib.contextmanager
def redirect_prints() -> Iterator[None]:
    """Inside this context, answers go to standard output and all other prints to standard error."""
    global _answers
    before, _answers = _answers, sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        answers, _answers = _answers, before
        answers.flush()


UNLIMITED = 100_000
"""Width of output that is not wrapped."""


def console(error: bool = False) -> Console:
    """A console of the terminal's width, or of ``COLUMNS``; without limit if the output is a file or a pipe."""
    from rich.console import Console, ConsoleDimensions

    file = sys.stderr if error else _answers or sys.stdout
    plain = Console(file=file, highlight=False)
    has_columns = os.environ.get("COLUMNS", "").isdigit()
    if plain.is_dumb_terminal and not has_columns:  # rich assumes 80 columns
        with contextlib.suppress(OSError):
            plain.size = ConsoleDimensions(*os.get_terminal_size(file.fileno()))
    if plain.is_terminal or has_columns:
        return plain
    return Console(file=file, highlight=False, width=UNLIMITED)


def wrap_width() -> int | None:
    """The width at which answers wrap; None if they must not."""
    width = console().width
    return None if width == UNLIMITED else width


TRAINING_STOPPED = "stopped. Finished results are kept; run the same command to continue"
_interruption = "stopped"


def describe_interruption(message: str) -> None:
    """Set the message that Ctrl-C prints from now on."""
    global _interruption
    _interruption = message


def interruption() -> str:
    """The message that Ctrl-C prints."""
    return _interruption


def print_error(message: str) -> None:
    """Print an error to standard error."""
    if sys.stderr is not None and sys.stderr.isatty():
        print_message(f"error: {message}")
    else:
        print(f"error: {escape_controls(message)}", file=sys.stderr)  # noqa: T201


def print_message(message: str) -> None:
    """Print a line to standard error that is not part of the answer, wrapped to the width of a terminal."""
    from flops_fit_core.report.answer import wrap

    output = console(error=True)
    width = None if output.width == UNLIMITED else output.width
    for line in escape_controls(message).split("\n"):
        for part in wrap(line, width):
            output.print(part, markup=False, emoji=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a JSON value to standard output."""
    text = json.dumps(value, indent=2, allow_nan=False)
    print(text.replace("\x7f", "\\u007f"), file=_answers)  # json escapes all other control characters


def print_csv(text: str) -> None:
    """Print CSV to standard output: exactly, or with escaped control characters if it is a terminal."""
    file = _answers or sys.stdout
    print(escape_controls(text) if file.isatty() else text, end="", file=file)


def print_table(table: DataTable) -> None:
    """Print a table to standard output, with its caption as text below."""
    output, grid = console(), table.rich()
    grid.caption = None
    with output.capture() as capture:
        output.print(grid)
    for line in capture.get().splitlines():
        print(line.rstrip(), file=output.file)
    print_text(table.caption)


def print_text(text: str, style: str = "") -> None:
    """Print lines of the answer to standard output, wrapped to the width of a terminal."""
    from flops_fit_core.report.answer import wrap

    output = console()
    for line in escape_controls(text).split("\n"):
        for part in wrap(line, wrap_width()):
            output.print(part, markup=False, emoji=False, style=style, soft_wrap=True)


def print_answer(answer: Answer) -> None:
    """Print the answer of a fit to standard output: the title in bold, warnings in yellow."""
    for number, line in enumerate(answer.lines(wrap_width())):
        print_text(line, "bold" if number == 0 else "yellow" if line.startswith("  !") else "")


MAX_NAMES = 5
"""The most names of runs that were excluded for the same reason; `fit --json` has all."""


def print_notes(diagnostics: Iterable[Diagnostic]) -> None:
    """Print warnings and notes, one per line."""
    for diagnostic in diagnostics:
        mark = "! " if diagnostic.severity == "warning" else "- "
        print_text(f"{mark}{diagnostic.message}")


def print_diagnostics(fit: LawFit) -> None:
    """Print the diagnostics of a fit and the runs that it excluded."""
    print_notes(fit.diagnostics)
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in fit.excluded.items():
        names_by_reason.setdefault(reason, []).append(name)
    for reason, names in names_by_reason.items():
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        shown = ", ".join(names[:MAX_NAMES]) + more
        print_text(f"  not used: {shown}: {reason}")
