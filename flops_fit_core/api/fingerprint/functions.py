"""Fingerprints of functions: code, defaults, closure, global variables and imports."""

from __future__ import annotations

import ast
from pathlib import Path
from types import FunctionType
from typing import Any

from flops_fit_core.api.fingerprint.code_names import imports
from flops_fit_core.api.fingerprint.computed_values import computed_part, default_nodes, keyword_default_nodes
from flops_fit_core.api.fingerprint.item_hash import qualified_name
from flops_fit_core.api.fingerprint.object_graph import ObjectGraph
from flops_fit_core.api.fingerprint.object_parts import (
    closure_values,
    describe_code,
    has_path_or_device,
    is_scalar,
)
from flops_fit_core.api.fingerprint.source_lookup import first_line, function_tree, source_file
from flops_fit_core.api.fingerprint.variables import global_variables
from flops_fit_core.plugins.first_party import imported_files, with_imports
from flops_fit_core.plugins.syntax_hash import hash_syntax


def describe_function(graph: ObjectGraph, function: FunctionType) -> dict[str, Any]:
    """A user's function: syntax tree (or compiled code), defaults, closure, used globals and imports."""
    graph.module_files.setdefault(function.__module__, source_file(function))
    tree = function_tree(function)
    if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        graph.add_function(source_file(function), first_line(tree))
    parts: dict[str, Any] = {"name": qualified_name(function)}
    parts["code"] = hash_syntax([tree]) if tree is not None else describe_code(function.__code__)
    defaults = [
        None if tree is not None and has_path_or_device(value) else value for value in function.__defaults__ or ()
    ]
    parts["defaults"] = [graph.plain_or_type(value) for value in defaults]
    keywords = (function.__kwdefaults__ or {}).items()
    parts["keyword defaults"] = graph.identifiable(
        {name: value for name, value in keywords if tree is None or not has_path_or_device(value)}
    )
    if tree is not None:
        parts["computed defaults"] = _computed_defaults(graph, function, tree)
    parts["closure"] = {name: graph.plain_or_type(value) for name, value in closure_values(function).items()}
    if hasattr(function, "__wrapped__"):
        parts["wrapped"] = graph.plain_or_type(function.__wrapped__)
    with graph.lenient():
        parts["globals"] = global_variables(graph, function)
        parts["imports"] = _imported_files(graph, function)
    return {name: part for name, part in parts.items() if part}


def describe_wrapper(graph: ObjectGraph, function: FunctionType) -> list[Any]:
    """A function of a library: its name, and the user's functions that it wraps."""
    closure = closure_values(function)
    candidates = [getattr(function, "__wrapped__", None), *closure.values()]
    settings = {name: value for name, value in closure.items() if is_scalar(value)}
    wrapped = [graph.user_callables(value) for value in candidates]
    return [qualified_name(function), list(filter(None, wrapped)), settings]


def _computed_defaults(graph: ObjectGraph, function: FunctionType, tree: ast.AST) -> list[Any] | None:
    """Of defaults with paths or devices, the other data that the source does not state."""
    values = function.__defaults__ or ()
    pairs = list(zip(default_nodes(tree, len(values)), values, strict=True))
    keyword_nodes = keyword_default_nodes(tree)
    pairs += [(keyword_nodes.get(name), value) for name, value in sorted((function.__kwdefaults__ or {}).items())]
    parts = [
        computed_part(node, value, graph.plain_data) if has_path_or_device(value) else None
        for node, value in pairs
    ]
    return parts if any(part is not None for part in parts) else None


def _imported_files(graph: ObjectGraph, function: FunctionType) -> list[str]:
    """Hashes of all files of the modules that a function imports when it is called."""
    folder = Path(source_file(function)).parent
    files = {path for statement in imports(function.__code__) for path in imported_files(*statement, folder)}
    return graph.hash_files(with_imports(files))
