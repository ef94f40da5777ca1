"""Where a figure is drawn: a new figure, which notebooks display, or your axes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flops_fit_core.errors import ConfigError
from flops_fit_core.report.axes import visible_length
from flops_fit_core.report.theme import INCHES, Theme, choose_theme, read_style

DPI = 200
"""Of a PNG, unless your matplotlib style sets ``savefig.dpi``."""


@contextmanager
def without_latex() -> Iterator[None]:
    """Draw text without LaTeX, also if a ``matplotlibrc`` asks for it: matplotlib reads that of the working
    directory, which may be the study of another user. Labels also have characters that LaTeX reads as commands."""
    if not mpl.rcParams["text.usetex"]:  # rc_context is not safe with threads
        yield
        return
    with mpl.rc_context({"text.usetex": False}):
        yield


class NotebookFigure(Figure):
    """A figure that notebooks display although pyplot did not make it."""

    @without_latex()
    def draw(self, renderer: Any) -> None:
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=png_dpi())
        return file.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """A PNG in double resolution with its size on the page, as IPython's protocol defines it."""
        width, height = (round(inches * self.dpi) for inches in self.get_size_inches())
        data = base64.b64encode(self._repr_png_()).decode()
        return {"image/png": data}, {"image/png": {"width": width, "height": height}}


def png_dpi() -> float:
    """Dots per inch of a PNG."""
    dpi = read_style("savefig.dpi", DPI)
    return DPI if dpi == "figure" else float(dpi)


@dataclass(frozen=True)
class Canvas:
    """The axes of a figure's panels, and its theme."""

    figure: Figure
    panels: list[Axes]
    theme: Theme
    is_new: bool
    """False if the axes are yours: the layout of the figure is yours too."""

    def characters(self, side: Literal["width", "height"] = "width") -> int:
        """Characters of a label that fit along a side of the first panel, estimated before the layout is known."""
        position = self.panels[0].get_position()
        inches = self.figure.get_size_inches()[int(side == "height")] * getattr(position, side)
        return max(16, int(72 * inches / (0.54 * self.theme.size("label"))))

    @property
    def is_narrow(self) -> bool:
        """Whether a legend to the right would leave too little for the data."""
        return float(self.figure.get_figwidth()) < 5

    def add_legend(self, handles: Sequence[Any], place: str = "best") -> None:
        """A legend below a new figure, which becomes higher by it; at ``place`` in the first of your axes."""
        if not handles:
            return
        if not self.is_new:
            add_second_legend(self.panels[0], handles=handles, loc=place, **self.theme.legend_style())
            return
        columns = self._legend_columns([str(handle.get_label()) for handle in handles])
        style = self.theme.legend_style(ncols=columns, columnspacing=1.5)
        self.figure.legend(handles=handles, loc="outside lower center", **style)
        if read_style("figure.figsize", None) is None:
            rows = -(-len(handles) // columns)
            self.figure.set_figheight(
                self.figure.get_figheight() + (1.55 * rows + 0.8) * self.theme.size("legend") / 72
            )

    def add_side_legend(self, handles: Sequence[Any], title: str, place: str) -> None:
        """A legend to the right of a new figure; at ``place`` in the first of your axes."""
        style = self.theme.legend_style(title=title)
        if not self.is_new:
            add_second_legend(self.panels[0], handles=handles, loc=place, **style)
            return
        legend = self.figure.legend(handles=handles, loc="outside right upper", **style)
        legend.get_title().set_color(self.theme.ink)

    def _legend_columns(self, labels: Sequence[str]) -> int:
        """The largest number of columns that fits on the width of the figure; items fill column after column."""
        available = 72 * self.figure.get_figwidth() / self.theme.size("legend") - 1
        for count in range(len(labels), 1, -1):
            columns = np.array_split(np.array(labels), count)
            if sum(max(0.56 * visible_length(label) + 4.2 for label in column) for column in columns) <= available:
                rows = -(-len(labels) // count)
                return -(-len(labels) // rows)  # rows of equal length
        return 1


def new_canvas(
    ax: Axes | Sequence[Axes] | None,
    style: str | None,
    width: str | None,
    *,
    kind: str,
    rows: Sequence[float] = (1,),
    columns: int = 1,
    optional_panels: int = 0,
    aspect: float = 0.62,
) -> Canvas:
    """The canvas of a figure with ``rows`` (relative heights) times ``columns`` panels.

    Args:
        ax: Your axes, one per panel; the last ``optional_panels`` may be missing. None for a new figure.
        style: ``light``, ``dark``, or None for the colours of your matplotlib style.
        width: ``column`` or ``page``; None for ``page``, or for ``figure.figsize`` of your matplotlib style.
        kind: Name of the figure, for messages.
        rows: Relative heights of the rows of panels, which share their x axis.
        columns: Number of columns.
        optional_panels: Number of panels that may be left out of ``ax``.
        aspect: Height of the figure over its width, at the width of a page.

    Raises ConfigError for a wrong number of axes, or an unknown style or width.
    """
    if ax is not None:
        return _given_axes(ax, style, width, kind=kind, count=len(rows) * columns, optional=optional_panels)
    theme = choose_theme(style, width)
    figsize = None if width else read_style("figure.figsize", None)
    inches = INCHES[width or "page"]
    height = inches * (max(aspect, 0.72) if width == "column" else aspect)
    if width == "column" and columns > 1:
        rows, columns, height = [1.0] * columns, 1, columns * height
    size = figsize or (inches, height)
    figure = NotebookFigure(figsize=size, layout="constrained", facecolor=theme.background)
    grid = figure.subplots(
        len(rows), columns, squeeze=False, sharex=len(rows) > 1 and "col", height_ratios=list(rows)
    )
    panels = list(grid.flat)
    for axes in panels:
        axes.set_facecolor(theme.background)
    return Canvas(figure, panels, theme, is_new=True)


def add_second_legend(axes: Axes, **arguments: Any) -> None:
    """A legend in addition to the legend that the axes may have."""
    previous = axes.get_legend()
    legend = axes.legend(**arguments)
    legend.get_title().set_color(legend.get_texts()[0].get_color())
    if previous is not None:
        axes.add_artist(previous)


def _given_axes(
    ax: Axes | Sequence[Axes], style: str | None, width: str | None, *, kind: str, count: int, optional: int
) -> Canvas:
    panels = [ax] if isinstance(ax, Axes) else list(ax)
    if not all(isinstance(item, Axes) for item in panels):
        raise ConfigError(f"ax={ax!r}: give axes of matplotlib, such as ax=plt.subplots()[1]")
    if not count - optional <= len(panels) <= count:
        fewest = f"{count - optional} or " if optional else ""
        example = ", ".join(f"ax{number}" for number in range(1, count + 1))
        raise ConfigError(
            f"kind {kind!r} has {fewest}{count} panels, and ax has {len(panels)} axes: give "
            f"ax=[{example}], or leave ax out for a new figure"
        )
    theme = choose_theme(style, width, panels[0])
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    if style is not None:
        figure.set_facecolor(theme.background)
        for axes in panels:
            axes.set_facecolor(theme.background)
    return Canvas(figure, panels, theme, is_new=False)
