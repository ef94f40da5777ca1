"""The syntax tree of a function or class that exists already, by the file and line of its compiled code.

Notebook cells and classes that cloudpickle carried to another process by value are found too, which ``inspect``
does not do: it looks a class up by its module.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Iterator
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any, NamedTuple

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
_MUTATING = {
    "add",
    "append",
    "clear",
    "extend",
    "insert",
    "move_to_end",
    "pop",
    "popitem",
    "remove",
    "setdefault",
    "update",
}


_CACHING = {"move_to_end", "popitem", "setdefault"}


class SourceTree:
    """The definitions in one file or notebook cell."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.at: dict[int, list[_Definition]] = {}
        self.named: dict[str, list[_Definition]] = {}
        for qualname, node in _definitions(tree, ""):
            self.at.setdefault(first_line(node), []).append(node)
            self.named.setdefault(qualname, []).append(node)
        self.mutated = frozenset(_mutated(tree))
        """Names of variables that a function changes: counters, caches, registries, settings."""

    def function(self, function: FunctionType) -> ast.AST | None:
        code = function.__code__
        nodes = [node for node in self.at.get(code.co_firstlineno, []) if name_of(node) == code.co_name]
        if code.co_name == "<lambda>":
            nodes = [node for node in nodes if _spans(node, code)]
        elif not nodes:  # the file was edited after it was imported
            nodes = self.named.get(function.__qualname__, [])
        return nodes[0] if len(nodes) == 1 else None

    def classes(self, qualname: str) -> list[ast.ClassDef]:
        return [node for node in self.named.get(qualname, []) if isinstance(node, ast.ClassDef)]

    def bindings(self, name: str) -> list[ast.stmt]:
        """The statements outside of functions and classes that give a variable its value."""
        return self._bindings.get(name, [])

    def setters(self, name: str) -> set[int] | None:
        """First lines of the functions that change a variable, and of those around them. None if it counts what
        has happened or caches: a method changes it, or a step from the value before."""
        return self._setters.get(name, set())

    @cached_property
    def _setters(self) -> dict[str, set[int] | None]:
        found: dict[str, set[int] | None] = {}
        for function, is_method in _functions(self.tree):
            steps = set(_stepped(function))
            for name in set(_mutated_in(function)):
                before = found.setdefault(name, set())
                is_state = is_method or name in steps or before is None
                found[name] = None if is_state else {*(before or ()), first_line(function)}
        return found

    @cached_property
    def _bindings(self) -> dict[str, list[ast.stmt]]:
        statements: dict[str, list[ast.stmt]] = {}
        for node in _outer_statements(self.tree.body):
            for name in _bound(node):
                statements.setdefault(name, []).append(node)
        return statements


def source_tree(file: str, namespace: dict[str, Any] | None = None) -> SourceTree | None:
    """None if there is no source."""
    linecache.checkcache(file)
    lines = linecache.getlines(file, namespace)
    if file not in _trees or _trees[file][0] is not lines:  # the same list until the file changes
        _trees[file] = lines, _parse("".join(lines))
    return _trees[file][1]


_trees: dict[str, tuple[list[str], SourceTree | None]] = {}
"""By file: its lines as linecache keeps them, and their tree."""


def _parse(text: str) -> SourceTree | None:
    try:
        return SourceTree(ast.parse(text)) if text else None
    except (SyntaxError, ValueError):
        return None


def source_file(function: FunctionType) -> str:
    """The file or notebook cell of a function. Of one that cloudpickle carried by value, which names no file, that
    of its module."""
    file = function.__code__.co_filename
    return str(function.__globals__.get("__file__") or file) if file == "<dynamic-code>" else file


def function_tree(function: FunctionType) -> ast.AST | None:
    """The definition of a function. None if it has no source, and for one of two lambdas that cannot be told
    apart."""
    source = source_tree(source_file(function), function.__globals__)
    return source.function(function) if source is not None else None


class ClassTree(NamedTuple):
    """The definition of a class, and its file."""

    node: ast.ClassDef
    source: SourceTree
    file: str

    def has(self, method: FunctionType) -> bool:
        """Whether a method was defined in the class's lines."""
        line = method.__code__.co_firstlineno
        return source_file(method) == self.file and first_line(self.node) <= line <= (self.node.end_lineno or 0)


def class_tree(kind: type, methods: list[FunctionType], hint: str | None) -> ClassTree | None:
    """The definition of a class. None if it has no source.

    Args:
        kind: The class.
        methods: The functions in it.
        hint: The file of other code of its module.
    """
    own = [method for method in methods if method.__qualname__.startswith(f"{kind.__qualname__}.")]
    files = [source_file(method) for method in own]
    files += [hint] if hint is not None else []
    module = sys.modules.get(kind.__module__)
    if getattr(module, kind.__qualname__.partition(".")[0], None) is not None:
        files += [file] if (file := getattr(module, "__file__", None)) else []
    for file in dict.fromkeys(files):
        source = source_tree(file)
        found = [ClassTree(node, source, file) for node in source.classes(kind.__qualname__)] if source else []
        found = [tree for tree in found if any(map(tree.has, own))] or found if len(found) > 1 else found
        line = vars(kind).get("__firstlineno__")  # Python 3.13 and later
        found = [tree for tree in found if first_line(tree.node) == line] or found if len(found) > 1 else found
        if found:
            return found[-1]
    return None


def name_of(node: _Definition) -> str:
    return "<lambda>" if isinstance(node, ast.Lambda) else node.name


def first_line(node: _Definition) -> int:
    """With decorators, as compiled code counts."""
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    stack = [(node, prefix)]
    while stack:
        parent, prefix = stack.pop()
        for child in ast.iter_child_nodes(parent):
            if not isinstance(child, _Definition):
                stack.append((child, prefix))
                continue
            qualname = f"{prefix}{name_of(child)}"
            yield qualname, child
            stack.append((child, f"{qualname}." if isinstance(child, ast.ClassDef) else f"{qualname}.<locals>."))


def _spans(node: ast.AST, code: CodeType) -> bool:
    """Whether a lambda's body is where its compiled code comes from: others may stand on its line."""
    assert isinstance(node, ast.Lambda)
    body = node.body
    start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
    for line, end_line, column, end_column in code.co_positions():
        if None not in (line, end_line, column, end_column) and (column, end_column) != (0, 0):
            place, end_place = (line, column), (end_line, end_column)
            if not (start <= place and end_place <= end):
                return False
    return True


def _outer_statements(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in statements:
        yield statement
        if not isinstance(statement, _Definition):
            inner = [
                child for child in ast.walk(statement) if isinstance(child, ast.stmt) and child is not statement
            ]
            yield from inner


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Assign):
        targets: list[ast.expr] = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign | ast.For):
        targets = [statement.target]
    elif isinstance(statement, ast.With):
        targets = [item.optional_vars for item in statement.items if item.optional_vars is not None]
    else:
        targets = []
    return {name for target in targets if (name := root_name(target))} | {
        part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
    }


def root_name(node: ast.AST) -> str | None:
    """``a`` of ``a.b[c].d``."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _mutated(tree: ast.Module) -> Iterator[str]:
    """Variables, of a module or of a class, that code in a function changes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _mutated_in(node)


def _mutated_in(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for node in (node for statement in function.body for node in ast.walk(statement)):
        if isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield from _last_names(node.value)
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _MUTATING:
            yield from _last_names(node.func.value)


def _functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """All functions, and whether they are, or are in, a method."""
    stack: list[tuple[ast.AST, bool]] = [(tree, False)]
    while stack:
        parent, is_method = stack.pop()
        for child in ast.iter_child_nodes(parent):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child, is_method
            stack.append((child, is_method or isinstance(child, ast.ClassDef)))


def _stepped(function: ast.AST) -> Iterator[str]:
    """Variables that a function changes by a step from the value before, or fills when it is asked."""
    for node in ast.walk(function):
        if isinstance(node, ast.AugAssign):
            target = node.target.value if isinstance(node.target, ast.Subscript) else node.target
            yield from _last_names(target)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CACHING:
            yield from _last_names(node.func.value)


def _last_names(node: ast.AST) -> Iterator[str]:
    """``b`` of ``a.b``, and ``a`` of ``a``."""
    if isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Name):
        yield node.id
