"""Hashes of Python source that depend on its syntax tree only.

Comments, docstrings, layout and the order of neighbouring imports do not change a hash. Every supported version of
Python computes the same hash, unlike with ``ast.dump``.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

_LAYOUT = {"ctx", "kind", "type_comment", "type_ignores"}
"""Fields that follow from a node's position in the tree, or depend on the layout of the source."""


def hash_syntax(nodes: Iterable[ast.AST]) -> str:
    """A hash of a sequence of syntax trees: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for node in nodes:
        for token in _tokens(node):
            digest.update(f"{len(token)}:{token}".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]


def _tokens(root: ast.AST) -> Iterator[str]:
    """Node types, non-empty fields and constants, in the order of the source."""
    stack: list[Any] = [root]  # not recursive, because a sum of 1,000 terms has 1,000 levels
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, ast.Constant):
            yield f"{type(item.value).__name__} {_format_constant(item.value)}"
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


def _format_constant(constant: object) -> str:
    # hex: Python limits the decimal digits of an integer. ascii: the escapes of repr depend on Python's Unicode
    # version.
    return hex(constant) if isinstance(constant, int) and not isinstance(constant, bool) else ascii(constant)


def _fields(node: ast.AST) -> list[tuple[str, Any]]:
    """Non-empty fields, sorted by name. Newer versions of Python add fields, which are empty for older syntax."""
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
    """The parts of an f-string with adjacent text joined: versions of Python divide text differently."""
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
    """Statements without those that do nothing (docstrings, ``pass``, ``...``), with neighbouring imports
    sorted."""
    result: list[Any] = []
    imports: dict[tuple[str, ...], ast.stmt] = {}
    for statement in statements:
        if isinstance(statement, ast.Pass) or (
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        ):
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports |= {_import_key(part): part for part in _single_imports(statement)}
            continue
        result += [imports[key] for key in sorted(imports)]
        imports = {}
        result.append(statement)
    return result + [imports[key] for key in sorted(imports)]


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
