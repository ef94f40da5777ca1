"""The page's style sheets and scripts, as text to write into the page, and its content security policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flops_fit_core.plugins.utilities import escape_controls

FOLDER = Path(__file__).parent
STYLES = ("page.css", "answer.css", "tables.css", "figures.css", "print.css")
LIBRARIES = ("d3.min.js", "plot.umd.min.js")
MODULES = (
    "data.js",
    "format.js",
    "grid.js",
    "palette.js",
    "download.js",
    "budget.js",
    "table.js",
    "charts.js",
    "profiles.js",
    "optima.js",
    "residuals.js",
    "curves.js",
    "tasks.js",
    "gallery.js",
    "main.js",
)
"""ES modules, each after those that it imports. The page joins them into one script: a file of one page has no
address from which a module could be imported."""

_IMPORT = re.compile(r"^import\b[^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async function|function|const|let|class)\b)", re.MULTILINE)


@dataclass(frozen=True)
class PageFiles:
    """The style sheets and the ES modules of a page, each module after those that it imports."""

    styles: tuple[Path, ...]
    modules: tuple[Path, ...]


REPORT = PageFiles(
    tuple(FOLDER / "css" / name for name in STYLES), tuple(FOLDER / "js" / name for name in MODULES)
)
"""The page of one study."""


@cache
def style(files: PageFiles = REPORT) -> str:
    """The style sheets."""
    return "\n".join(map(_read, files.styles))


@cache
def scripts(files: PageFiles = REPORT) -> tuple[str, ...]:
    """The scripts in the order in which they run: the libraries, then the page's own."""
    own = "\n".join(_EXPORT.sub("", _IMPORT.sub("", _read(path))) for path in files.modules)
    return (*(_read(FOLDER / "vendor" / name) for name in LIBRARIES), own)


@cache
def security_policy(files: PageFiles = REPORT) -> str:
    """Allows only these scripts, and nothing from the network. The libraries set styles of elements."""
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts(files))
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """A value as JSON that is safe between <script> tags: no text in it can end the tag or open a comment.

    Control characters are written as ``\\x1b``, as in all text of the page.
    """
    text = json.dumps(_escape_texts(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _escape_texts(value: Any) -> Any:
    if isinstance(value, str):
        return escape_controls(value)
    if isinstance(value, dict):
        return {escape_controls(str(key)): _escape_texts(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escape_texts(item) for item in value]
    return value
