"""mkdocs calls these functions while it builds the site."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SAME_HOST = "default-src 'self' 'unsafe-inline' data:; worker-src 'self' blob:"
"""Content security policy: the browser loads nothing from another host, whatever the theme's scripts ask for."""


def on_post_page(output: str, **context: Any) -> str:
    """Forbid a page to load anything from another host."""
    return _add_policy(output)


def on_post_template(output_content: str, **context: Any) -> str:
    """The same for pages without a source, such as 404.html."""
    return _add_policy(output_content)


def _add_policy(html: str) -> str:
    return html.replace("<head>", f'<head>\n<meta http-equiv="Content-Security-Policy" content="{SAME_HOST}">', 1)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures of figures.md, drawn from the runs in docs/examples, in light and dark."""
    for name, svg in draw_figures(ROOT / "docs" / "examples" / "text-gpt-runs.csv").items():
        files.append(File.generated(config, f"images/figures/{name}.svg", content=svg))
    return files


def draw_figures(table: Path) -> dict[str, str]:
    """``KIND-STYLE`` -> SVG, for every kind that a table of runs allows."""
    from flops_fit_core import fit
    from flops_fit_core.fitting import optimum
    from flops_fit_core.report.figures import FigureData, draw_all, render_svg

    law = fit(table, fitter="parametric")
    largest = law.flops_range[1]
    data = FigureData(law.observations, law, lambda flops: optimum(law, flops), [10 * largest, 100 * largest])
    return {
        f"{kind}-{style}": render_svg(figure, f"{kind}-{style}")
        for style in ("light", "dark")
        for kind, figure in draw_all(data, style=style).items()
    }


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Replace ``<!-- public names of MODULE -->`` by an entry for each name in the module's ``__init__.pyi``, and
    ``<!-- figure KIND -->`` by the figure in the reader's colour scheme.

    Links to the README, which is not a page of the site, become text.
    """
    markdown = re.sub(r"\[([^\]]+)\]\((?:\.\./)+README\.md[^)]*\)", r"\1", markdown)
    markdown = re.sub(r"<!-- figure ([\w-]+) -->", lambda match: figure_in_both_styles(match[1]), markdown)
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
