"""Hashes of Python source that depend on its syntax tree only.

Comments, docstrings and layout change no hash, and every supported version of Python computes the same one, which
``ast.dump`` does not. The order of neighbouring imports does not count either.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

_LAYOUT = {"ctx", "kind", "type_comment", "type_ignores"}
"""Fields that follow from a node's place, and those that depend on how the source is written."""


def hash_syntax(nodes: Iterable[ast.AST]) -> str:
    """16 hexadecimal digits of syntax trees, in their order."""
    digest = hashlib.sha256()
    for node in nodes:
        for token in _tokens(node):
            digest.update(f"{len(token)}:{token}".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]


def _tokens(root: ast.AST) -> Iterator[str]:
    """Node types, fields that are not empty and constants, in the order of the source."""
    stack: list[Any] = [root]  # not recursive: a sum of a thousand terms is a thousand levels deep
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, ast.Constant):
            yield f"{type(item.value).__name__} {_shown(item.value)}"
        elif isinstance(item, ast.AST):
            yield f"({type(item).__name__}"
            stack.append(")")
            for name, value in reversed(_fields(item)):
                stack += [value, f".{name}"]
        elif isinstance(item, list):
            yield "["
            stack += ["]", *reversed(item)]
        else:
            yield repr(item)


def _shown(constant: object) -> str:
    # hex: the decimal digits of a long integer are limited. ascii: what repr escapes depends on Python's Unicode.
    return hex(constant) if isinstance(constant, int) and not isinstance(constant, bool) else ascii(constant)


def _fields(node: ast.AST) -> list[tuple[str, Any]]:
    """By name: versions of Python add fields, which are empty in source that older versions can read."""
    fields = []
    for name, value in sorted(ast.iter_fields(node)):
        if isinstance(value, list):
            value = _normalized(node, value)
        elif isinstance(value, str):
            value = f"'{value}"
        if name not in _LAYOUT and value is not None and value != []:
            fields.append((name, value))
    return fields


def _normalized(node: ast.AST, items: list[Any]) -> list[Any]:
    if isinstance(node, ast.JoinedStr):
        return _joined(items)
    if isinstance(node, ast.Delete):  # del (a, b) is del a, b
        return [part for item in items for part in (item.elts if isinstance(item, ast.Tuple) else [item])]
    if items and isinstance(items[0], ast.stmt):
        return _statements(items)
    return [f"'{item}" if isinstance(item, str) else "None" if item is None else item for item in items]


def _joined(parts: list[Any]) -> list[Any]:
    """The parts of an f-string; versions of Python cut its constant text at different places."""
    joined: list[Any] = []
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            if joined and isinstance(joined[-1], ast.Constant):
                part = ast.Constant(joined.pop().value + part.value)
            if not part.value:
                continue
        joined.append(part)
    return joined


def _statements(statements: list[Any]) -> list[Any]:
    """Statements but those that do nothing (docstrings, ``pass``, ``...``); neighbouring imports sorted."""
    kept: list[Any] = []
    imports: dict[tuple[str, ...], ast.stmt] = {}
    for statement in statements:
        if isinstance(statement, ast.Pass) or (
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        ):
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports |= {_import_key(part): part for part in _single_imports(statement)}
            continue
        kept += [imports[key] for key in sorted(imports)]
        imports = {}
        kept.append(statement)
    return kept + [imports[key] for key in sorted(imports)]


def _single_imports(statement: ast.Import | ast.ImportFrom) -> Iterator[ast.Import | ast.ImportFrom]:
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            yield ast.Import([alias])
        else:
            yield ast.ImportFrom(statement.module, [alias], statement.level)


def _import_key(statement: ast.Import | ast.ImportFrom) -> tuple[str, ...]:
    (alias,) = statement.names
    source = (statement.module or "", str(statement.level or 0)) if isinstance(statement, ast.ImportFrom) else ()
    return (type(statement).__name__, *source, alias.name, alias.asname or "")
