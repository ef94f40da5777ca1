"""Displays of the live view: a region of a terminal that is redrawn, a notebook cell, or lines of text."""

from __future__ import annotations

import io
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from flops_fit_core.records import RunResult
from flops_fit_core.records.html import escape
from flops_fit_core.study.live.state import ESTIMATE_SECONDS, Snapshot
from flops_fit_core.study.live.text import ASCII_SYMBOLS, SYMBOLS, Line, result_line, view_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

REFRESHES_PER_SECOND = 4
NOTEBOOK_SECONDS = 0.5
"""The shortest time between two updates of a notebook cell."""
NOTEBOOK_WIDTH = 100
_STYLES = {"failed": "red", "diverged": "yellow"}


class Display(ABC):
    """Shows snapshots of a sweep."""

    def start(self, take_snapshot: Callable[[], Snapshot]) -> None:
        """Begin. ``take_snapshot`` may be called at any time, by any thread."""
        self.take_snapshot = take_snapshot

    @abstractmethod
    def show_result(self, result: RunResult, position: int, *, elsewhere: bool = False) -> None:
        """Show a run that has finished, as the run number ``position`` that is done. ``elsewhere``: another driver
        of the study has trained it."""

    def refresh(self) -> None:  # noqa: B027 (a terminal is redrawn by a thread)
        """Show the present state, if it is due."""

    def stop(self) -> None:  # noqa: B027 (lines need no end)
        """End. May be called twice."""


class LineDisplay(Display):
    """A line per result, in plain text. For files, pipes and terminals without cursor control."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._snapshot: Snapshot | None = None
        self._taken = 0.0

    def show_result(self, result: RunResult, position: int, *, elsewhere: bool = False) -> None:
        snapshot = self._recent_snapshot()
        seconds = None if snapshot.estimate is None else snapshot.estimate.seconds
        total = len(snapshot.plan.runs)
        text = result_line(result, position, total, remaining=seconds, elsewhere=elsewhere)
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        self._file.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        self._file.flush()

    def _recent_snapshot(self) -> Snapshot:
        """A snapshot of at most a second ago: with thousands of runs, one per result would slow a sweep."""
        now = time.monotonic()
        if self._snapshot is None or now - self._taken >= ESTIMATE_SECONDS:
            self._snapshot, self._taken = self.take_snapshot(), now
        return self._snapshot


class TerminalDisplay(Display):
    """Lines for finished runs, and below them a region that is redrawn."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._symbols = ASCII_SYMBOLS if console.options.ascii_only else SYMBOLS
        self._live: Live | None = None
        self._total = 0
        """Runs of the plan."""
        self._lengths: list[int] = []
        """Characters of each line that is on the screen."""

    def start(self, take_snapshot: Callable[[], Snapshot]) -> None:
        from rich.live import Live

        super().start(take_snapshot)
        self._total = len(take_snapshot().plan.runs)
        self._live = Live(
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            get_renderable=self._render,
            vertical_overflow="crop",
        )
        self._live.start()

    def show_result(self, result: RunResult, position: int, *, elsewhere: bool = False) -> None:
        width = self._console.width - 1
        text = result_line(result, position, self._total, width=width, elsewhere=elsewhere)
        self._console.print(self._text(Line(text, _STYLES.get(result.status, ""))), soft_wrap=True)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _render(self) -> Text:
        from rich.text import Text

        # A line as wide as the terminal would wrap on terminals that move the cursor after the last column.
        width = self._console.width - 1
        self._erase_wrapped_lines(width + 1)
        lines = view_lines(self.take_snapshot(), width, symbols=self._symbols)
        self._lengths = [len(line.text) for line in lines]
        return Text("\n").join(self._text(line) for line in lines)

    def _erase_wrapped_lines(self, width: int) -> None:
        """Move the cursor up if a narrower terminal has wrapped the lines. rich moves it by one row per line."""
        rows = sum(max(1, -(-length // width)) for length in self._lengths)
        if extra := rows - len(self._lengths):
            self._console.file.write(f"\r\x1b[{extra}A\x1b[0J")

    def _text(self, line: Line) -> Text:
        from rich.text import Text

        return Text(line.text, style=line.style, no_wrap=True, overflow="crop")


class NotebookDisplay(Display):
    """A bar and lines in the output of a notebook cell, updated in place. Finished runs have no line."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = 0.0

    def start(self, take_snapshot: Callable[[], Snapshot]) -> None:
        import IPython.display as notebook

        super().start(take_snapshot)
        show: Any = notebook.display
        self._handle = show(self._output(), display_id=True)

    def show_result(self, result: RunResult, position: int, *, elsewhere: bool = False) -> None:
        self.refresh()

    def refresh(self) -> None:
        if time.monotonic() - self._shown >= NOTEBOOK_SECONDS:
            self._update()

    def stop(self) -> None:
        self._update()

    def _update(self) -> None:
        self._shown = time.monotonic()
        if self._handle is not None:
            self._handle.update(self._output())

    def _output(self) -> Any:
        import IPython.display as notebook

        make_html: Any = notebook.HTML
        return make_html(self._html())

    def _html(self) -> str:
        snapshot = self.take_snapshot()
        percent = f"{100 * snapshot.share_done:.1f}"
        lines = "\n".join(escape(line.text) for line in view_lines(snapshot, NOTEBOOK_WIDTH)[1:])
        return (
            f"<div><strong>{escape(snapshot.plan.name)}</strong> "
            f'<progress max="100" value="{percent}" style="width: 20em; vertical-align: middle"></progress> '
            f"{snapshot.share_done:.0%}, {snapshot.done} of {len(snapshot.plan.runs)} runs"
            f'<pre style="margin: 0.3em 0; line-height: 1.3">{lines}</pre></div>'
        )


def choose_display(file: TextIO | None = None) -> Display:
    """The display for this process: a notebook cell, a terminal, or lines of text on standard error."""
    if file is None and _is_notebook():
        return NotebookDisplay()
    stream = sys.stderr if file is None else file
    if not _is_interactive(stream):
        return LineDisplay(stream)
    from rich.console import Console

    return TerminalDisplay(Console(file=stream, highlight=False, force_jupyter=False))


def _is_interactive(file: TextIO) -> bool:
    """Whether the file is a terminal that can move its cursor."""
    try:
        return file.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    except (AttributeError, ValueError, io.UnsupportedOperation):
        return False


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook. IPython is not imported for this question."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
