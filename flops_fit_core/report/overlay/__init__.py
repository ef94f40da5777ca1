"""The page that overlays two studies, tables or fits.

A :class:`Side` holds the data of one of them, :func:`list_conventions` compares how they count N, D, C and the
loss. :func:`write_overlay` writes the page, figures and tables. Quantities that are counted differently are not
compared.
"""

from __future__ import annotations

from flops_fit_core.report.overlay.content import Gain, OverlayContent
from flops_fit_core.report.overlay.conventions import Convention, list_conventions
from flops_fit_core.report.overlay.side import Side
from flops_fit_core.report.overlay.writing import write_overlay

__all__ = ["Convention", "Gain", "OverlayContent", "Side", "list_conventions", "write_overlay"]
