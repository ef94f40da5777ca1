"""The documentation site: a strict build, its code blocks, its API pages, and no request to another host."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

pytest.importorskip("mkdocs", reason="the site needs: pip install 'flops-fit[docs]'")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
API_PAGES = sorted((DOCS / "reference" / "api").glob("*.md"))
LOADING_ATTRIBUTES = {"src", "srcset", "poster", "data", "formaction", "action"}
LOADING_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch"}
POLICY = "default-src 'self' 'unsafe-inline' data:; worker-src 'self' blob:"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors: pages, links and anchors that do not exist, wrong docstrings."""
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


class PageParser(HTMLParser):
    """Code blocks, ids, and addresses that a browser loads on its own, of a page of the site."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.blocks: list[str] = []
        self.ids: set[str] = set()
        self.loads: list[str] = []
        self.policies: list[str] = []
        self.in_article = self.in_block = False
        self.items = self.rows = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        self.loads += [value for name, value in values.items() if name in LOADING_ATTRIBUTES]
        if tag == "link" and LOADING_LINKS & set(values.get("rel", "").split()):
            self.loads.append(values["href"])
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(values["content"])
        if tag == "article":
            self.in_article = True
        if self.in_article:
            self.items += tag == "li"
            self.rows += tag == "tr"
        if tag == "pre":
            self.in_block = True
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self.in_article = False
        if tag == "pre":
            self.in_block = False

    def handle_data(self, data: str) -> None:
        if self.in_block:
            self.blocks[-1] += data


def page_of(site: Path, source: Path) -> PageParser:
    """The built page of a Markdown file."""
    relative = source.relative_to(DOCS).with_suffix("")
    folder = relative.parent if relative.name in ("index", "README") else relative
    return PageParser((site / folder / "index.html").read_text(encoding="utf-8"))


def code_lines(block: str) -> list[str]:
    """The lines of a code block, without blank lines around it and spaces at the end of a line."""
    return [line.rstrip() for line in block.strip("\n").splitlines()]


@pytest.mark.parametrize("source", sorted(set(PAGES) - set(API_PAGES)), ids=lambda path: path.stem)
def test_a_page_has_the_code_blocks_and_lists_of_its_source(site: Path, source: Path) -> None:
    """GitHub reads Markdown as CommonMark; the site's parser differs about lists, indentation and comments."""
    tokens = MarkdownIt("commonmark").enable("table").parse(source.read_text(encoding="utf-8"))
    page = page_of(site, source)
    expected = [code_lines(token.content) for token in tokens if token.type in ("fence", "code_block")]
    assert [code_lines(block) for block in page.blocks] == expected
    assert page.items == sum(token.type == "list_item_open" for token in tokens)
    assert page.rows == sum(token.type == "tr_open" for token in tokens)


@pytest.mark.parametrize("source", API_PAGES, ids=lambda path: path.stem)
def test_an_api_page_has_every_public_name(site: Path, source: Path) -> None:
    name = re.findall(r"public names of ([\w.]+)", source.read_text(encoding="utf-8"))[0]
    module = importlib.import_module(name)
    assert module.__all__
    assert {f"{name}.{public}" for public in module.__all__} - page_of(site, source).ids == set()


def test_every_package_with_public_names_has_an_api_page() -> None:
    stubs = {path.parent.relative_to(ROOT) for path in (ROOT / "flops_fit_core").rglob("__init__.pyi")}
    text = "".join(path.read_text(encoding="utf-8") for path in API_PAGES)
    assert {".".join(path.parts) for path in stubs} == set(re.findall(r"public names of ([\w.]+)", text))


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for path in pages:
        page = PageParser(path.read_text(encoding="utf-8"))
        assert [address for address in page.loads if re.match(r"(\w+:)?//", address)] == [], path
        assert page.policies == [POLICY], f"{path}: scripts may load from other hosts"


def test_no_style_sheet_loads_anything_from_another_host(site: Path) -> None:
    sheets = list(site.rglob("*.css"))
    assert sheets
    for path in sheets:
        text = path.read_text(encoding="utf-8")
        addresses = re.findall(r"""(?:url\(|@import)\s*["']?((?:\w+:)?//[^"')]*)""", text)
        assert addresses == [], path
