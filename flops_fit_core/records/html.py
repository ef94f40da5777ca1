"""HTML of records and tables for notebooks. Every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def html_block(title: str, *parts: str) -> str:
    """A title above parts that are HTML already. Empty parts are left out."""
    return f"<div><strong>{escape(title)}</strong>{''.join(parts)}</div>"


def html_text(text: str) -> str:
    """A paragraph; empty for an empty text."""
    return f"<p>{escape(text)}</p>" if text else ""


def html_list(items: Iterable[str]) -> str:
    """A list; empty without items."""
    entries = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<ul>{entries}</ul>" if entries else ""


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[bool] = ()) -> str:
    """A table. Columns are aligned to the right, or to the left where ``left`` is true."""
    sides = [*left, *[False] * (len(headings) - len(left))]
    # Numbers and intervals do not wrap.
    numeric = ' style="text-align: right; white-space: nowrap"'
    styles = [' style="text-align: left"' if side else numeric for side in sides]
    head = "".join(f"<th{style}>{escape(text)}</th>" for text, style in zip(headings, styles, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{style}>{escape(text)}</td>" for text, style in zip(row, styles, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def escape(text: str) -> str:
    """Text as HTML. Control characters and overrides of the writing direction become visible escapes."""
    visible = "".join(
        sign if sign.isprintable() or sign in "\n\t" else sign.encode("unicode_escape").decode() for sign in text
    )
    return html.escape(visible)
