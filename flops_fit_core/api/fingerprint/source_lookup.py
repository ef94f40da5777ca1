"""The syntax tree of a function or class object, looked up by the file and line of its compiled code.

Unlike ``inspect``, which looks up a class by its module, this also works in notebook cells and for classes that
cloudpickle sent to another process by value.
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
"""Methods that change a container."""
_CACHING = {"move_to_end", "popitem", "setdefault"}
"""Methods that caches use."""


class SourceTree:
    """The definitions in one file or notebook cell."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self._by_line: dict[int, list[_Definition]] = {}
        self._by_name: dict[str, list[_Definition]] = {}
        for qualname, node in _iterate_definitions(tree, ""):
            self._by_line.setdefault(first_line(node), []).append(node)
            self._by_name.setdefault(qualname, []).append(node)
        self.mutated = frozenset(_mutated_names(tree))
        """Names of variables that functions change: counters, caches, registries, settings."""

    def function(self, function: FunctionType) -> ast.AST | None:
        code = function.__code__
        nodes = [node for node in self._by_line.get(code.co_firstlineno, []) if name_of(node) == code.co_name]
        if code.co_name == "<lambda>":
            nodes = [node for node in nodes if _spans(node, code)]
        elif not nodes:  # the file was edited after it was imported
            nodes = self._by_name.get(function.__qualname__, [])
        return nodes[0] if len(nodes) == 1 else None

    def classes(self, qualname: str) -> list[ast.ClassDef]:
        return [node for node in self._by_name.get(qualname, []) if isinstance(node, ast.ClassDef)]

    def bindings(self, name: str) -> list[ast.stmt]:
        """The statements outside functions and classes that set a variable."""
        return self._bindings.get(name, [])

    def setters(self, name: str) -> set[int] | None:
        """First lines of the functions that change a variable, and of the functions that contain these.

        None if the variable is a counter or a cache: a method changes it, or its new value depends on the old one.
        """
        return self._setters.get(name, set())

    @cached_property
    def _setters(self) -> dict[str, set[int] | None]:
        setters: dict[str, set[int] | None] = {}
        for function, is_method in _iterate_functions(self.tree):
            steps = set(_names_updated_in(function))
            for name in set(_names_mutated_in(function)):
                lines = setters.setdefault(name, set())
                is_state = is_method or name in steps or lines is None
                setters[name] = None if is_state else {*(lines or ()), first_line(function)}
        return setters

    @cached_property
    def _bindings(self) -> dict[str, list[ast.stmt]]:
        statements: dict[str, list[ast.stmt]] = {}
        for node in _outer_statements(self.tree.body):
            for name in _bound_names(node):
                statements.setdefault(name, []).append(node)
        return statements


def source_tree(file: str, namespace: dict[str, Any] | None = None) -> SourceTree | None:
    """The definitions in a file. None if its source is not available or not valid Python.

    Args:
        file: The file, or the name of a notebook cell.
        namespace: Globals of code in it, for files that only their loader can read.
    """
    linecache.checkcache(file)
    lines = linecache.getlines(file, namespace)
    if file not in _trees or _trees[file][0] is not lines:  # the same list until the file changes
        _trees[file] = lines, _parse("".join(lines))
    return _trees[file][1]


_trees: dict[str, tuple[list[str], SourceTree | None]] = {}
"""File to its lines (the list that linecache holds) and their tree."""


def _parse(text: str) -> SourceTree | None:
    try:
        return SourceTree(ast.parse(text)) if text else None
    except (SyntaxError, ValueError):
        return None


def source_file(function: FunctionType) -> str:
    """The file or notebook cell of a function; the file of its module if cloudpickle sent it by value."""
    file = function.__code__.co_filename
    return str(function.__globals__.get("__file__") or file) if file == "<dynamic-code>" else file


def function_tree(function: FunctionType) -> ast.AST | None:
    """The definition of a function. None without source, and if two lambdas cannot be distinguished."""
    source = source_tree(source_file(function), function.__globals__)
    return source.function(function) if source is not None else None


class ClassTree(NamedTuple):
    """The definition of a class, and its file."""

    node: ast.ClassDef
    source: SourceTree
    file: str

    def has(self, method: FunctionType) -> bool:
        """Whether a method is defined in the lines of the class."""
        line = method.__code__.co_firstlineno
        return source_file(method) == self.file and first_line(self.node) <= line <= (self.node.end_lineno or 0)


def class_tree(kind: type, methods: list[FunctionType], hint: str | None) -> ClassTree | None:
    """The definition of a class. None without source.

    Args:
        kind: The class.
        methods: Its functions.
        hint: The file of other code in its module.
    """
    defined = [method for method in methods if method.__qualname__.startswith(f"{kind.__qualname__}.")]
    files = [source_file(method) for method in defined]
    files += [hint] if hint is not None else []
    module = sys.modules.get(kind.__module__)
    if getattr(module, kind.__qualname__.partition(".")[0], None) is not None:
        files += [file] if (file := getattr(module, "__file__", None)) else []
    for file in dict.fromkeys(files):
        source = source_tree(file)
        trees = [ClassTree(node, source, file) for node in source.classes(kind.__qualname__)] if source else []
        trees = [tree for tree in trees if any(map(tree.has, defined))] or trees if len(trees) > 1 else trees
        line = vars(kind).get("__firstlineno__")  # Python 3.13 and later
        trees = [tree for tree in trees if first_line(tree.node) == line] or trees if len(trees) > 1 else trees
        if trees:
            return trees[-1]
    return None


def name_of(node: _Definition) -> str:
    return "<lambda>" if isinstance(node, ast.Lambda) else node.name


def first_line(node: _Definition) -> int:
    """The first line of a definition, decorators included, as in compiled code."""
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _iterate_definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
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
    """Whether compiled code comes from the body of this lambda: a line may contain several."""
    assert isinstance(node, ast.Lambda)
    body = node.body
    start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
    for line, end_line, column, end_column in code.co_positions():
        if None not in (line, end_line, column, end_column) and (column, end_column) != (0, 0):
            first, last = (line, column), (end_line, end_column)
            if not (start <= first and last <= end):
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


def _bound_names(statement: ast.stmt) -> set[str]:
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


def _mutated_names(tree: ast.Module) -> Iterator[str]:
    """Variables of modules and classes that code in functions changes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _names_mutated_in(node)


def _names_mutated_in(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
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


def _iterate_functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """All functions, and whether each is a method or inside one."""
    stack: list[tuple[ast.AST, bool]] = [(tree, False)]
    while stack:
        parent, is_method = stack.pop()
        for child in ast.iter_child_nodes(parent):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child, is_method
            stack.append((child, is_method or isinstance(child, ast.ClassDef)))


def _names_updated_in(function: ast.AST) -> Iterator[str]:
    """Variables that a function changes depending on their value before: counters and caches."""
    for node in ast.walk(function):
        if isinstance(node, ast.AugAssign):
            target = node.target.value if isinstance(node.target, ast.Subscript) else node.target
            yield from _last_names(target)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CACHING:
            yield from _last_names(node.func.value)


def _last_names(node: ast.AST) -> Iterator[str]:
    """``b`` of ``a.b``; ``a`` of ``a``."""
    if isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Name):
        yield node.id
