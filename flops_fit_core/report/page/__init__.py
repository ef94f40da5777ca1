"""The page of a report: one self-contained HTML file for light and dark screens and for print.

:class:`ReportContent` holds everything that a page shows. :func:`render_page` turns it into text with the
templates, style sheets, scripts and vendored libraries of this folder. All names and messages are untrusted text.
"""

from __future__ import annotations

from flops_fit_core.report.page.content import ReportContent, ReportContext
from flops_fit_core.report.page.rendering import render_page

__all__ = ["ReportContent", "ReportContext", "render_page"]
