"""Text that is safe to print on a terminal."""

from __future__ import annotations

import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1: terminals execute them
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # directions and line breaks: they change the order of text
    "\ud800-\udfff\U000e0000-\U000e007f]"  # surrogates cannot be written, tags cannot be seen
)


def escape_controls(text: str) -> str:
    """Text that a terminal shows without executing anything: control characters are written as ``\\x1b``.

    Names and messages may come from another person's study, table or plugin. A terminal would execute the escape
    sequences in them, and overrides of the writing direction would hide parts. Tabs and newlines stay.
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
