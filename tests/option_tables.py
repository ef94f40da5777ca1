"""The option tables of docs/reference/options.md, made from the code.

``python tests/option_tables.py`` writes them anew.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flops_fit_core.config import DEFAULTS, Experiment, Sweep
from flops_fit_core.plugins import RegisteredSpec, Runtime
from flops_fit_core.plugins.registry import KINDS, installed

DOCUMENT = Path(__file__).parents[1] / "docs" / "reference" / "options.md"
BUNDLED = "flops-fit"
HEADINGS = {"logger": "## `loggers`: none by default", "reader": "## Readers: by default chosen by the logs"}
"""Headings of kinds that are no table of an experiment."""
HEADER = "| option | type | default | meaning |\n|---|---|---|---|\n"


def render(text: str) -> str:
    """A document with the tables between its markers made anew."""
    for name, table in [("sweep", options_table(Sweep)), ("plugins", plugin_tables())]:
        start, end = f"<!-- {name}-options -->\n", f"<!-- /{name}-options -->"
        before, _, rest = text.partition(start)
        text = before + start + table + end + rest.partition(end)[2]
    return text


def plugin_tables() -> str:
    """A heading and a table for every bundled plugin, by kind."""
    parts = []
    for kind in KINDS:
        if kind == "law":  # laws have no options and no table
            continue
        bundled = [offer for offer in installed().offers(kind) if offer.source.split(" ")[0] == BUNDLED]
        heading = HEADINGS.get(kind) or f"## `[{kind}]`: {about_kind(kind)}"
        parts += [heading, *(section for offer in bundled for section in plugin_sections(offer))]
    return "\n\n".join(parts) + "\n"


def about_kind(kind: str) -> str:
    if kind == "trainer":
        return "by default what the dataset asks for, otherwise `torch`"
    if kind == "schedule":
        return "by default what the optimizer asks for, otherwise `cosine`"
    if kind == "counter":
        return "by default what the task asks for"
    if kind == "optimizer":
        return "by default what the model family declares, otherwise `sgd`"
    if kind in DEFAULTS:
        return f"by default `{DEFAULTS[kind].rpartition('/')[2]}`"
    return "required" if Experiment.model_fields[kind].is_required() else "optional"


def plugin_sections(offer: RegisteredSpec[Any]) -> Iterator[str]:
    options = offer.spec.options
    none = "" if options.model_fields else " No options."
    yield f"**`{offer.spec.name}`** (`{offer.name}`) {code_marks(about_plugin(offer))}{none}".rstrip()
    if options.model_fields:
        yield options_table(options).rstrip()


def about_plugin(offer: RegisteredSpec[Any]) -> str:
    """What it is: its options' own docstring, or where plugins share their options, its ``build``'s."""
    options = offer.spec.options
    shared = sum(other.spec.options is options for other in installed().offers()) > 1
    doc = "" if shared else " ".join((options.__doc__ or "").split())
    first = " ".join((inspect.getdoc(offer.spec.build) or "").partition("\n\n")[0].split())
    return doc or re.split(r"(?<=\.) (?:Raises|Leaves out)", first)[0]


def options_table(model: type[BaseModel]) -> str:
    """One row an option: name, type, default, meaning."""
    schema = model.model_json_schema()["properties"]
    meanings = attribute_docstrings(model)
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else shown(field.get_default(call_default_factory=True))
        runtime = any(isinstance(mark, Runtime) or mark is Runtime for mark in field.metadata)
        meaning = code_marks(meanings.get(name, "")) + (" †" if runtime else "")
        cells = [f"`{name}`", kind_of(schema[name]), default, meaning.strip()]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEADER + "\n".join(rows) + "\n"


def attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text below each field, of the class and of those it inherits from."""
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not (issubclass(cls, BaseModel) and cls.__module__.startswith("flops_fit")):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for node, after in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                texts[ast.unparse(node.target)] = " ".join(str(ast.literal_eval(after.value)).split())
    return texts


def shown(default: Any) -> str:
    if default is None:
        return "unset"
    return f"`{json.dumps(list(default) if isinstance(default, tuple) else default)}`"


def code_marks(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text)


NAMES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "object": "table"}
LIMITS = {"exclusiveMinimum": "> ", "minimum": "≥ ", "exclusiveMaximum": "< ", "maximum": "≤ "}


def kind_of(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    for union in ("anyOf", "oneOf"):
        if union in schema:
            kinds = [kind_of(kind) for kind in schema[union] if kind.get("type") != "null"]
            return ", or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} of: {kind_of(schema['prefixItems'][0])}"
        return f"list of: {kind_of(schema['items'])}"
    limits = [f"{sign}{schema[key]:g}" for key, sign in LIMITS.items() if key in schema]
    return " ".join([NAMES[schema["type"]], ", ".join(limits)]).strip()


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
