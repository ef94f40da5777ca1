"""Writes figures as PNG and SVG."""

from __future__ import annotations

import io
import re
from pathlib import Path

from matplotlib.figure import Figure

from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.report.figures.canvas import png_dpi, without_latex


def save_figure(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg``, each atomically. Equal figures give equal SVG files."""
    return list(write_figure(figure, folder, stem)[0])


def write_figure(figure: Figure, folder: Path, stem: str) -> tuple[tuple[Path, Path], str]:
    """As :func:`save_figure`. Returns the files and the text of the SVG file.

    Figures are drawn in memory: another process may write the same report at the same time.
    """
    files = folder / f"{stem}.png", folder / f"{stem}.svg"
    png = io.BytesIO()
    with without_latex():
        figure.savefig(png, format="png", dpi=png_dpi(), metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout is computed; computing it again takes a third of the time
    figure.set_layout_engine(None)  # with any engine, savefig draws twice
    svg = render_svg(figure, stem)
    write_atomically(files[0], png.getvalue(), durable=False)
    write_atomically(files[1], svg, durable=False)
    return files, svg


@without_latex()
def render_svg(figure: Figure, prefix: str) -> str:
    """The figure as SVG, with ids that start with ``prefix``: a page may hold several figures."""
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return _make_ids_unique(svg.getvalue(), prefix)


def _make_ids_unique(svg: str, prefix: str) -> str:
    """Replace matplotlib's random ids by numbered ids, unique among the figures of a page."""
    ids = {
        original: f"{prefix}-{place}"
        for place, original in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg)))
    }
    svg = re.sub(r'\bid="([^"]+)"', lambda match: f'id="{ids[match[1]]}"', svg)
    svg = re.sub(r'href="#([^"]+)"', lambda match: f'href="#{ids[match[1]]}"', svg)
    return re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{ids[match[1]]})", svg)
