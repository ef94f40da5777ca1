"""mkdocs calls these functions while it builds the site."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from flops_fit_core import fit

ROOT = Path(__file__).parents[1]
SAME_HOST = "default-src 'self' 'unsafe-inline' data:; worker-src 'self' blob:"
"""Content security policy: the browser loads nothing from another host, whatever the theme's scripts ask for."""

FIGURE = re.compile(r"<!-- figure ([\w-]+) -->")


def on_post_page(output: str, **context: Any) -> str:
    """Forbid a page to load anything from another host."""
    return _add_policy(output)


def on_post_template(output_content: str, **context: Any) -> str:
    """The same for pages without a source, such as 404.html."""
    return _add_policy(output_content)


def _add_policy(html: str) -> str:
    return html.replace("<head>", f'<head>\n<meta http-equiv="Content-Security-Policy" content="{SAME_HOST}">', 1)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures that figures.md names, in light and dark, drawn from the runs in docs/examples."""
    kinds = FIGURE.findall((ROOT / "docs" / "figures.md").read_text(encoding="utf-8"))
    law = fit(ROOT / "docs" / "examples" / "text-gpt-runs.csv", fitter="parametric")
    for kind in kinds:
        for style in ("light", "dark"):
            svg = io.StringIO()
            law.plot(kind, style=style).savefig(svg, format="svg", metadata={"Date": None})
            files.append(File.generated(config, f"images/figures/{kind}-{style}.svg", content=svg.getvalue()))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Replace ``<!-- public names of MODULE -->`` by an entry for each name in the module's ``__init__.pyi``, and
    ``<!-- figure KIND -->`` by the figure in the reader's colour scheme.

    Links to the README, which is not a page of the site, become text.
    """
    markdown = re.sub(r"\[([^\]]+)\]\((?:\.\./)+README\.md[^)]*\)", r"\1", markdown)
    markdown = FIGURE.sub(lambda match: figure_in_both_styles(match[1]), markdown)
    return re.sub(r"<!-- public names of ([\w.]+) -->", lambda match: api_entries(match[1]), markdown)


def figure_in_both_styles(kind: str) -> str:
    """Two images, of which the theme shows the one of the reader's colour scheme."""
    return "\n".join(
        f"![Figure of kind {kind}](images/figures/{kind}-{style}.svg#only-{style})" for style in ("light", "dark")
    )


def api_entries(module: str) -> str:
    """A mkdocstrings directive per public name."""
    return "\n\n".join(f"::: {module}.{name}" for name in public_names(module))


def public_names(module: str) -> list[str]:
    """The names that a package's stub exports, in alphabetical order."""
    stub = ROOT / module.replace(".", "/") / "__init__.pyi"
    imports = [
        node for node in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)
    ]
    return sorted((alias.asname or alias.name for node in imports for alias in node.names), key=str.lower)
