"""A table for terminals, programs (JSON, CSV) and notebooks."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops_fit_core import numbers
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.utilities import escape_controls
from flops_fit_core.records import Diagnostic, Interval
from flops_fit_core.records.html import html_block, html_list, html_table, html_text

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.table import Table as RichTable

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A displayed column: its heading, and the text of a cell."""

    heading: str
    show: Callable[[Row], str]
    align_left: bool = False
    """For text; numbers are aligned to the right."""


@dataclass(frozen=True)
class DataTable:
    """Rows of plain values for programs, and columns of text for display."""

    title: str
    caption: str
    """The conventions of the numbers, in a sentence or two."""
    fields: tuple[str, ...]
    """Keys of every row, in the column order of a CSV file."""
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    style: Callable[[Row], str] = lambda row: ""
    """Style of a row on a terminal, such as ``"red"``."""
    diagnostics: tuple[Diagnostic, ...] = ()
    """Notes and warnings about the numbers; printed below the table."""

    def cells(self) -> list[list[str]]:
        """The text of every cell, row by row."""
        return [[column.show(row) for column in self.columns] for row in self.rows]

    def json(self) -> list[dict[str, Any]]:
        """The rows as JSON values; null for missing numbers."""
        return [{field: row[field] for field in self.fields} for row in self.rows]

    def csv(self, *, spreadsheet: bool = False) -> str:
        """The rows as CSV with a header line; empty cells for missing numbers.

        Args:
            spreadsheet: Write an apostrophe before texts that a spreadsheet would execute as a formula (OWASP,
                "CSV Injection"). Numbers stay as they are.
        """
        show = _spreadsheet_value if spreadsheet else _csv_value
        rows = [self.fields, *([show(row[field]) for field in self.fields] for row in self.rows)]
        return "".join(map(_csv_line, rows))

    def to_pandas(self) -> DataFrame:
        """The rows as a pandas DataFrame, a column per field. Raises ConfigError if pandas is not installed."""
        try:
            import pandas as pd
        except ImportError:
            raise ConfigError(
                "to_pandas needs pandas, which is not installed: pip install 'flops-fit[parquet]'"
            ) from None
        return pd.DataFrame(self.json(), columns=list(self.fields))

    def __str__(self) -> str:
        """The table as plain text, with the caption and the diagnostics below. No line is wrapped."""
        headings = [column.heading for column in self.columns]
        texts = [[escape_controls(cell) for cell in cells] for cells in (headings, *self.cells())]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)] if headings else []
        sides = [str.ljust if column.align_left else str.rjust for column in self.columns]
        lines = [
            "  ".join(side(cell, width) for side, cell, width in zip(sides, cells, widths, strict=True)).rstrip()
            for cells in texts
        ]
        marks = {"warning": "!", "note": "-"}
        notes = [f"{marks[item.severity]} {escape_controls(item.message)}" for item in self.diagnostics]
        title, caption = escape_controls(self.title), escape_controls(self.caption)
        return "\n".join([title, "", *lines, "", caption, *notes])

    def _repr_html_(self) -> str:
        """For notebooks."""
        headings = [column.heading for column in self.columns]
        return html_block(
            self.title,
            html_table(headings, self.cells(), [column.align_left for column in self.columns]),
            html_text(self.caption),
            html_list(item.message for item in self.diagnostics),
        )

    def rich(self) -> RichTable:
        """For a terminal: ``rich.print(table.rich())``."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(escape_controls(self.title)),
            caption=Text(escape_controls(self.caption)),
            box=box.SIMPLE_HEAD,
        )
        table.padding = (0, 1, 0, 0)
        table.caption_justify = "left"
        cells_by_row = self.cells()
        for index, column in enumerate(self.columns):
            # Headings and text may wrap on narrow terminals; numbers must not.
            min_width = 0 if column.align_left else max((len(cells[index]) for cells in cells_by_row), default=0)
            table.add_column(
                Text(escape_controls(column.heading)),
                justify="left" if column.align_left else "right",
                min_width=min_width or None,
                overflow="fold",
            )
        for row, cells in zip(self.rows, cells_by_row, strict=True):
            table.add_row(*(Text(escape_controls(cell)) for cell in cells), style=self.style(row))
        return table


def _csv_line(cells: Sequence[Any]) -> str:
    """A line of CSV. The writer quotes a carriage return in a cell only if its line terminator has one."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _csv_value(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of a text that spreadsheets take for a formula. The last four are the full-width forms."""


def _spreadsheet_value(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(FORMULA_STARTS):
        return _csv_value(value)
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def column(heading: str, field: str, show: Callable[[Any], str] = str, *, align_left: bool = False) -> Column:
    """A column that shows a field, or a dash for None."""
    return Column(heading, lambda row: numbers.NONE if row[field] is None else show(row[field]), align_left)


def conventions(params_name: str, flops_name: str, unit: str, eval_set: str | None = None) -> str:
    """The conventions of N, C, D and loss in a line; ``eval_set``: a further held-out set (None: the main set)."""
    loss = f"Loss{on_set(eval_set)}: nats per {singular(unit)}."
    return f"N: {params_name}. C: training FLOPs, {flops_name}. D: {unit}. {loss}"


def on_set(eval_set: str | None) -> str:
    """`` on NAME``; empty for the main held-out set, which has no name."""
    return "" if eval_set is None else f" on {eval_set}"


def singular(unit: str) -> str:
    """``tokens`` -> ``token``."""
    return unit.removesuffix("s") or unit


def show_exponent(interval: Interval) -> str:
    """A scaling exponent in three decimals with its interval: ``0.513 (0.480 to 0.543)``."""
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
