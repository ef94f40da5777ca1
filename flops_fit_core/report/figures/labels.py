"""Labels next to curves, placed only where they overlap neither data nor each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from flops_fit_core.report.theme import Theme

_SPACING = 3.0
"""Pixels between the points at which a curve is compared with a label."""


@dataclass(frozen=True)
class CurveLabel:
    """A text, and the places next to its curve at which it may stand, the best first."""

    text: str
    places: Sequence[tuple[float, float, str]]
    """x, y in data coordinates, and the side of that point: ``right``, ``left``, ``above`` or ``below``."""


_SIDES: dict[str, tuple[float, float, str, str]] = {
    "right": (5, 0, "left", "center"),
    "left": (-5, 0, "right", "center"),
    "above": (0, 5, "center", "bottom"),
    "below": (0, -6, "center", "top"),
    "above right": (3, 3, "left", "bottom"),
    "above left": (-3, 3, "right", "bottom"),
    "below right": (3, -4, "left", "top"),
    "below left": (-3, -4, "right", "top"),
}


def label_curves(axes: Axes, labels: Sequence[CurveLabel], theme: Theme) -> bool:
    """Write every label, or none of them: False if there is no room for one.

    Call it when everything else is drawn.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # computes the layout
    obstacles = _drawn_points(axes)
    written: list[Annotation] = []
    occupied: list[Bbox] = [text.get_window_extent() for text in axes.texts if text.get_text()]
    inside = axes.get_window_extent()
    for label in labels:
        for annotation in _candidates(axes, label, theme):
            box = annotation.get_window_extent().padded(1.5)
            if _is_free(box, inside, occupied, obstacles):
                written.append(annotation)
                occupied.append(box)
                break
            annotation.remove()
        else:
            for annotation in written:
                annotation.remove()
            return False
    return True


def _candidates(axes: Axes, label: CurveLabel, theme: Theme) -> Iterator[Annotation]:
    for x, y, side in label.places:
        dx, dy, ha, va = _SIDES[side]
        annotation = axes.annotate(
            label.text,
            (x, y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha=ha,
            va=va,
            fontsize=theme.size("note"),
            color=theme.ink,
            zorder=8,
        )
        annotation.set_in_layout(False)
        yield annotation


def _is_free(box: Bbox, inside: Bbox, occupied: Sequence[Bbox], obstacles: NDArray[np.float64]) -> bool:
    if box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1:
        return False
    if any(box.overlaps(other) for other in occupied):
        return False
    x, y = obstacles.T
    return not bool(np.any((x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)))


def _drawn_points(axes: Axes) -> NDArray[np.float64]:
    """Points of all lines and markers in pixels."""
    points: list[Any] = [np.empty((0, 2))]
    for line in axes.lines:
        pixels = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
        pixels = pixels[np.isfinite(pixels).all(axis=1)]
        if line.get_marker() not in ("", "None", None, " "):
            radius = line.get_markersize() * figure_scale(axes) / 2
            circle = np.array([(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 9)[:-1]]) * radius * 0.8
            points += [pixels, *(pixels + offset for offset in circle)]
        if line.get_linestyle() not in ("None", "", " ", "none"):
            points += [_densify(pixels)]
    for collection in axes.collections:
        if not isinstance(collection, PolyCollection):
            offsets = np.asarray(collection.get_offsets(), dtype=float)
            points.append(collection.get_offset_transform().transform(offsets))
    stacked: NDArray[np.float64] = np.concatenate(points)
    return stacked


def _densify(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(pixels) < 2:
        return pixels
    lengths = np.hypot(*np.diff(pixels, axis=0).T)
    counts = np.minimum(np.ceil(lengths / _SPACING), 2000).astype(int) + 1
    parts = [np.linspace(a, b, n) for a, b, n in zip(pixels[:-1], pixels[1:], counts, strict=True)]
    dense: NDArray[np.float64] = np.concatenate(parts)
    return dense


def figure_scale(axes: Axes) -> float:
    """Pixels per point."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return float(figure.dpi) / 72
