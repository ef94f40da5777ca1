"""Finds words and names that are always wrong in this project, and prints the rewrite.

    python tests/plain_language.py [FILE ...]     default: every .py and .md file of the project

Exit status 1 if there is one. To keep a line as it is, end it with ``# plain: allow`` (in Markdown,
``<!-- plain: allow -->``) and give the reason in the same comment.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOW = "plain: allow"
NAMES = {
    "one": "the name of the thing: run, column, result",
    "found": "the name of the thing: match, profile, result",
    "about": "the name of the content: summary, notes; or a verb: describe_...",
    "there": "the name of the thing: existing, drivers, files",
    "said": "message, output",
    "whole": "complete, total",
}
"""Identifiers that are pronouns, adverbs or participles -> advice."""
THINGS = (
    "planner|"
    "plugin|model|family|store|trainer|recipe|counter|optimizer|dataset|task|spec|hook|driver|worker|executor|logger|"
    "registry|engine|core|code|function|class|method|module|message|error|note|table|plan|study|run|result|fit|law|"
    "fitter|file|folder|command|program|test|device|scheduler"
)
PHRASES = [
    (rf"\b(?:{THINGS})s? (?:says?|said|tells?|told|knows?|knew)\b", "states, prints, returns, raises, has"),
    (r"\b(?:is|are|was|were|be|being) told\b", "receives, is called with"),
    (
        r"\bone (?:[a-z]+ )?[a-z]+ an? (?:GPU|core|run|size|budget|job|row|line|process|node|worker|kind|seed)\b",
        "one ... per ...",
    ),
    (r"\bof (?:its|their|your|his|our) own\b", "separate, custom, or leave it out"),
    (r"\b(?:somebody|nobody|whoever)\b", "you, a user, no process"),
    (r"\b(?:goes|go|went|going) on\b", "continues"),
    (r"\bbeside\b", "next to, with, for comparison"),
]
"""Regular expression of a phrase -> rewrite."""


@dataclass(frozen=True)
class Finding:
    """One place to rewrite."""

    path: Path
    line: int
    text: str
    rewrite: str

    def __str__(self) -> str:
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}: {self.text!r}: write {self.rewrite}"


def check_file(path: Path) -> list[Finding]:
    """Every finding of a Python or Markdown file, without the lines that opt out."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    findings = [*_phrases(path, _prose(path, text))]
    if path.suffix == ".py":
        findings += _names(path, text)
    return sorted(
        {item for item in findings if ALLOW not in lines[item.line - 1]}, key=lambda item: (item.line, item.text)
    )


def _prose(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of Markdown outside code fences, or of comments and strings of Python."""
    if path.suffix == ".md":
        fenced = False
        for number, line in enumerate(text.splitlines(), 1):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif not fenced:
                yield number, re.sub(r"`[^`]*`", "``", line)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, re.sub(r"``[^`]*``", "``", line)


def _phrases(path: Path, prose: Iterator[tuple[int, str]]) -> Iterator[Finding]:
    for number, line in prose:
        for pattern, rewrite in PHRASES:
            for match in re.finditer(pattern, line, re.I):
                yield Finding(path, number, match[0], rewrite)


def _names(path: Path, text: str) -> Iterator[Finding]:
    """Names that the file binds: variables, parameters, functions, attributes, imports' aliases."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            bound = node.attr
        elif isinstance(node, ast.arg):
            bound = node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound = node.name
        else:
            continue
        if (name := bound.strip("_")) in NAMES:
            yield Finding(path, node.lineno, bound, NAMES[name])


def project_files() -> list[Path]:
    """Every Python and Markdown file of the project; the changelog quotes old names."""
    folders = ("flops_fit_core", "plugins", "tests", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    exceptions = {ROOT / "docs" / "changelog.md", Path(__file__), ROOT / "tests" / "test_plain_language.py"}
    return sorted({ROOT / "README.md", *files} - exceptions)


def main(arguments: list[str]) -> int:
    """Print the findings of some files. Returns the exit status."""
    files = [Path(argument).resolve() for argument in arguments] or project_files()
    findings = [item for path in files if path.suffix in (".py", ".md") for item in check_file(path)]
    print("\n".join(map(str, findings)))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
