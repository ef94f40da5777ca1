"""What a variable holds beyond the constants in the statement that sets it: read from a file, computed, or set
elsewhere. Places (paths, devices), callables and what a clock or the system gives are left out."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from flops_fit_core.api.fingerprint.object_parts import is_place

_ABSENT = object()
_OF_PROCESS = re.compile(
    r"(time\.)?(time_ns|monotonic(_ns)?|perf_counter(_ns)?|process_time(_ns)?)"
    r"|time\.(time|ctime|asctime|localtime|gmtime|strftime)"
    r"|(\w+\.)?(datetime|date)\.(now|utcnow|today)"
    r"|(uuid\.)?(uuid1|uuid4)|(os\.)?(getpid|urandom)|secrets\.\w+|socket\.gethostname|platform\.node"
)


def computed_part(node: ast.AST | None, value: Any, leaf: Callable[[Any], Any]) -> Any:
    """The parts of a value, in its structure, that the expression which makes it does not state.

    Args:
        node: The expression; None if it is not known, and then every part counts.
        value: What the variable holds.
        leaf: What stands for a value that is no container; None to leave it out.

    Returns:
        None if the expression states all of it.
    """
    if node is not None and (_states(node, value) or (not _is_container(node) and reads_process(node))):
        return None
    if isinstance(value, Mapping):
        entries = _entries(node)
        parts = {str(key): computed_part(entries.get(str(key)), value[key], leaf) for key in value}
        gone = sorted(entries.keys() - parts.keys())
        kept = {name: part for name, part in sorted(parts.items()) if part is not None}
        return ({"(gone)": gone} if gone else {}) | kept or None
    if isinstance(value, list | tuple):
        elements = _elements(node, len(value))
        found = [computed_part(element, item, leaf) for element, item in zip(elements, value, strict=True)]
        return found if any(part is not None for part in found) or _has_other_length(node, value) else None
    if isinstance(value, set | frozenset):
        return sorted(filter(None, (computed_part(None, item, leaf) for item in value)), key=repr) or None
    if is_place(value) or isinstance(value, ModuleType) or callable(value):
        return None
    return leaf(value)


def assigned_value(statements: list[ast.stmt], name: str) -> ast.AST | None:
    """The expression that a variable is set to, if one statement sets it."""
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


def reads_process(node: ast.AST | None) -> bool:
    """Whether an expression reads what is another in every process: a clock, a process id, a new identifier."""
    calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)] if node is not None else []
    return any(_OF_PROCESS.fullmatch(ast.unparse(function)) for function in calls)


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
