"""Data in a variable that its assignment does not state: read from a file, computed, or set elsewhere.

Paths, devices, callables and values of clocks or of the operating system are left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from flops_fit_core.api.fingerprint.object_parts import is_path_or_device

_ABSENT = object()
_PROCESS_CALLS = re.compile(
    r"(time\.)?(time_ns|monotonic(_ns)?|perf_counter(_ns)?|process_time(_ns)?)"
    r"|time\.(time|ctime|asctime|localtime|gmtime|strftime)"
    r"|(\w+\.)?(datetime|date)\.(now|utcnow|today)"
    r"|(uuid\.)?(uuid1|uuid4)|(os\.)?(getpid|urandom)|secrets\.\w+|socket\.gethostname|platform\.node"
)


def computed_part(node: ast.AST | None, value: Any, leaf: Callable[[Any], Any]) -> Any:
    """The parts of a value that the expression which creates it does not state, in the value's structure.

    Args:
        node: The expression. If it is None, every part counts.
        value: The value of the variable.
        leaf: Returns the JSON of a value that is not a container, or None to leave it out.

    Returns:
        None if the expression states the complete value.
    """
    if node is not None and (_states(node, value) or (not _is_container(node) and reads_process_state(node))):
        return None
    if isinstance(value, Mapping):
        entries = _entries(node)
        parts = {str(key): computed_part(entries.get(str(key)), value[key], leaf) for key in value}
        removed = sorted(entries.keys() - parts.keys())
        unstated = {name: part for name, part in sorted(parts.items()) if part is not None}
        return ({"(gone)": removed} if removed else {}) | unstated or None
    if isinstance(value, list | tuple):
        elements = _elements(node, len(value))
        items = [computed_part(element, item, leaf) for element, item in zip(elements, value, strict=True)]
        return items if any(part is not None for part in items) or _has_other_length(node, value) else None
    if isinstance(value, set | frozenset):
        return sorted(filter(None, (computed_part(None, item, leaf) for item in value)), key=repr) or None
    if is_path_or_device(value) or isinstance(value, ModuleType) or callable(value):
        return None
    return leaf(value)


def assigned_value(statements: list[ast.stmt], name: str) -> ast.AST | None:
    """The expression that a variable is set to; None unless exactly one statement sets it."""
    if len(statements) != 1:
        return None
    (statement,) = statements
    if isinstance(statement, ast.AnnAssign):
        return statement.value
    if not isinstance(statement, ast.Assign):
        return None
    for target in statement.targets:
        if isinstance(target, ast.Name) and target.id == name:
            return statement.value
        if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
            pairs = zip(target.elts, statement.value.elts, strict=False)
            return next((node for part, node in pairs if isinstance(part, ast.Name) and part.id == name), None)
    return None


def reads_process_state(node: ast.AST | None) -> bool:
    """Whether an expression reads a value that differs between processes: a clock, a process id, a random id."""
    calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)] if node is not None else []
    return any(_PROCESS_CALLS.fullmatch(ast.unparse(function)) for function in calls)


def default_nodes(definition: ast.AST | None, count: int) -> list[ast.AST | None]:
    """The expressions of a function's last ``count`` positional defaults."""
    arguments = getattr(definition, "args", None)
    nodes: list[ast.AST | None] = list(arguments.defaults) if isinstance(arguments, ast.arguments) else []
    return nodes if len(nodes) == count else [None] * count


def keyword_default_nodes(definition: ast.AST | None) -> dict[str, ast.AST | None]:
    """The expressions of a function's keyword-only defaults, by name."""
    arguments = getattr(definition, "args", None)
    if not isinstance(arguments, ast.arguments):
        return {}
    return {part.arg: node for part, node in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}


def _is_container(node: ast.AST) -> bool:
    return isinstance(node, ast.List | ast.Tuple) or bool(_entries(node))


def _states(node: ast.AST, value: Any) -> bool:
    try:
        stated = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    try:
        return type(stated) is type(value) and bool(stated == value)
    except Exception:  # the comparison of a value's own class may raise anything
        return False


def _entries(node: ast.AST | None) -> dict[str, ast.AST | None]:
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else _ABSENT for key in node.keys]
        return {str(key): item for key, item in zip(keys, node.values, strict=True) if key is not _ABSENT}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {part.arg: part.value for part in node.keywords if part.arg is not None}
    return {}


def _elements(node: ast.AST | None, count: int) -> list[ast.AST | None]:
    if not isinstance(node, ast.List | ast.Tuple) or len(node.elts) != count:
        return [None] * count
    return [None if isinstance(element, ast.Starred) else element for element in node.elts]


def _has_other_length(node: ast.AST | None, value: list[Any] | tuple[Any, ...]) -> bool:
    if not isinstance(node, ast.List | ast.Tuple) or any(isinstance(part, ast.Starred) for part in node.elts):
        return False
    return len(node.elts) != len(value)
