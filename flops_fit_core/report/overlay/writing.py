"""Writes the page of two sides, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.report.comparison import gains_table
from flops_fit_core.report.datatable import DataTable
from flops_fit_core.report.figures import write_figure
from flops_fit_core.report.overlay.answers import answers_table
from flops_fit_core.report.overlay.content import Gain, OverlayContent, build_content
from flops_fit_core.report.overlay.conventions import Convention
from flops_fit_core.report.overlay.figures import draw_overlays
from flops_fit_core.report.overlay.rendering import render_overlay
from flops_fit_core.report.overlay.side import Side


def write_overlay(
    folder: Path,
    first: Side,
    second: Side,
    conventions: Sequence[Convention],
    gain: Gain,
    *,
    allow_differences: bool = False,
) -> list[Path]:
    """Write the page of two sides into ``folder``: ``index.html``, figures as PNG and SVG, tables as CSV.

    Args:
        folder: Created if missing. Each file is replaced atomically.
        first: A.
        second: B.
        conventions: Those of A and B, by :func:`~flops_fit_core.report.overlay.conventions.list_conventions`.
        gain: The gain of B over A, or why there is none.
        allow_differences: Whether to compare quantities whose conventions differ, with a warning.

    Returns the files written, the page first. Raises OSError for a folder that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = build_content(first, second, conventions, gain, allow_differences)
    files: list[Path] = []
    for stem, figure in draw_overlays(content).items():
        files += write_figure(figure, folder, stem)[0]
    for stem, table in _tables(content).items():
        files.append(folder / f"{stem}.csv")
        write_atomically(files[-1], table.csv(), durable=False)
    page = folder / "index.html"
    write_atomically(page, render_overlay(content), durable=False)
    return [page, *files]


def _tables(content: OverlayContent) -> dict[str, DataTable]:
    tables = {}
    if content.pairs:
        tables["answers"] = answers_table(content.pairs, content.title)
    if content.gain.comparison is not None:
        tables["gains"] = gains_table(content.gain.comparison)
    return tables
