"""Colours, text sizes and line widths of figures: values of matplotlib's style that you set, or ours.

No function changes ``matplotlib.rcParams``: figures may be drawn in several threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, LogNorm, to_rgb, to_rgba
from matplotlib.font_manager import font_scalings

from flops_fit_core.errors import ConfigError

Style = Literal["light", "dark"]
Width = Literal["column", "page"]
INCHES: dict[str, float] = {"column": 3.3, "page": 7.0}
"""Widths of a paper's column and of its text block."""
TEXT_POINTS: dict[str, float] = {"column": 7.5, "page": 9.0}
MAX_NAMED_BUDGETS = 12
"""With more budgets, a colour bar replaces their labels."""
MIN_CONTRAST = 3.0
"""WCAG 2.2, success criterion 1.4.11: graphical objects against the background."""


@dataclass(frozen=True)
class Theme:
    """The look of a figure. Every colour except ``faint`` has contrast 3:1 or more against ``background``."""

    background: Any
    ink: Any
    """Text, axes and reference lines."""
    grey: Any
    """Data in the background."""
    faint: Any
    """The grid and the range of the runs, which carry no data."""
    law: Any
    second: Any
    """A second law or a second kind of data."""
    budgets: Colormap
    text_points: float = TEXT_POINTS["page"]

    def size(self, kind: Literal["title", "label", "tick", "legend", "note"]) -> float:
        """Text size in points: the size in your matplotlib style, or a share of ``text_points``."""
        key, share = {
            "title": ("axes.titlesize", 1.0),
            "label": ("axes.labelsize", 1.0),
            "tick": ("xtick.labelsize", 0.9),
            "legend": ("legend.fontsize", 0.9),
            "note": ("legend.fontsize", 0.9),
        }[kind]
        value = read_style(key, None)
        if value is None:
            return self.text_points * share
        return self.text_points * font_scalings[value] if isinstance(value, str) else float(value)

    @property
    def line(self) -> float:
        """Line width in points."""
        return float(read_style("lines.linewidth", 1.4))

    @property
    def marker(self) -> float:
        """Marker size in points."""
        return float(read_style("lines.markersize", 0.5 * self.text_points))

    def legend_style(self, **changes: Any) -> dict[str, Any]:
        """Arguments of every legend."""
        style = {"fontsize": self.size("legend"), "frameon": False, "labelcolor": self.ink, "alignment": "left"}
        return {**style, "title_fontsize": self.size("legend"), "handlelength": 1.6, **changes}

    def budget_colors(self, budgets: Sequence[float]) -> list[Any]:
        """A colour per ascending budget: by rank to separate neighbours, by ln C if a colour bar shows them."""
        if len(budgets) > MAX_NAMED_BUDGETS:
            norm = LogNorm(budgets[0], budgets[-1])
            return [self.budgets(float(norm(budget))) for budget in budgets]
        return [self.budgets(rank / max(1, len(budgets) - 1)) for rank in range(len(budgets))]

    @staticmethod
    def dot_scale(count: int) -> float:
        """Size of each of many dots, relative to the marker size."""
        return 1.0 if count <= 60 else 0.7 if count <= 300 else 0.45

    def hollow(self, color: Any, marker: str = "*", scale: float = 2.2) -> dict[str, Any]:
        """A marker with a coloured edge, filled with the background."""
        size = {"markersize": scale * self.marker, "mew": 0.24 * self.line + 0.9}
        return {"marker": marker, "linestyle": "none", "mfc": self.background, "mec": color, **size}

    def dot(self, color: Any, scale: float = 1.0) -> dict[str, Any]:
        """A filled dot with a thin edge in the colour of the background, so that neighbours stay apart."""
        edge = {"mec": self.background, "mew": 0.4}
        return {"marker": "o", "linestyle": "none", "markersize": scale * self.marker, "color": color, **edge}


def _part_of(name: str, low: float, high: float) -> Colormap:
    """The part of a colour map that can be seen against the background."""
    return ListedColormap(mpl.colormaps[name](np.linspace(low, high, 256)))


LIGHT = Theme(
    background="#ffffff",
    ink="#1f2328",
    grey="#767d86",
    faint="#d8dee4",
    law="#0072b2",
    second="#d55e00",
    budgets=_part_of("plasma", 0.0, 0.6),
)
DARK = Theme(
    background="#15181c",
    ink="#e6edf3",
    grey="#8c959f",
    faint="#3a424b",
    law="#56b4e9",
    second="#e69f00",
    budgets=_part_of("plasma", 0.46, 0.96),
)
THEMES = {"light": LIGHT, "dark": DARK}


def read_style(key: str, default: Any) -> Any:
    """A value of matplotlib's style if you changed it, or ``default``."""
    current: Mapping[str, Any] = mpl.rcParams  # type: ignore[assignment]
    original: Mapping[str, Any] = mpl.rcParamsDefault  # type: ignore[assignment]
    return default if current[key] == original[key] else current[key]


def luminance(color: Any) -> float:
    """Relative luminance of a colour, 0 for black and 1 for white (WCAG 2.2)."""
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(first: Any, second: Any) -> float:
    """Contrast of two colours, from 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def choose_theme(style: str | None, width: str | None, axes: Axes | None = None) -> Theme:
    """The theme of a figure.

    Without ``style``, the background is that of ``axes`` or of your matplotlib style, and the colours follow it.
    Raises ConfigError for an unknown style or width.
    """
    _check_choice("style", style, get_args(Style))
    _check_choice("width", width, get_args(Width))
    if axes is not None:
        points = float(mpl.rcParams["font.size"])
    else:
        points = float(read_style("font.size", TEXT_POINTS[width or "page"]))
    if style is not None:
        return replace(THEMES[style], text_points=points)
    background = axes.get_facecolor() if axes is not None else read_style("axes.facecolor", LIGHT.background)
    if to_rgba(background)[3] < 0.5:
        background = LIGHT.background  # a transparent figure lies on paper or on a page
    theme = LIGHT if contrast(background, LIGHT.ink) >= contrast(background, DARK.ink) else DARK
    return replace(theme, background=background, text_points=points)


def _check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise ConfigError(f"{name}={value!r}: choose {' or '.join(map(repr, choices))}")
