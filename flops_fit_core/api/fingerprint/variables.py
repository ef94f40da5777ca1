"""Fingerprints of the global variables that code uses, and of modules."""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from flops_fit_core.api.fingerprint.classes import user_subclasses
from flops_fit_core.api.fingerprint.code_names import global_names
from flops_fit_core.api.fingerprint.computed_values import assigned_value, computed_part, reads_process_state
from flops_fit_core.api.fingerprint.item_hash import object_state, qualified_name, unidentified
from flops_fit_core.api.fingerprint.object_graph import MutatedVariable, ObjectGraph
from flops_fit_core.api.fingerprint.object_parts import (
    has_path_or_device,
    is_definition,
    is_namespace,
    is_user_code,
    origin_of_name,
)
from flops_fit_core.api.fingerprint.source_lookup import SourceTree, source_file, source_tree
from flops_fit_core.plugins.first_party import is_first_party, package_files, with_imports
from flops_fit_core.plugins.syntax_hash import hash_syntax

_MODULE_ATTRIBUTES = {
    "__builtins__",
    "__cached__",
    "__doc__",
    "__file__",
    "__loader__",
    "__name__",
    "__package__",
    "__path__",
}
_COMPUTED_IMPORTS = {("importlib", "import_module"), ("sys", "modules")}


def global_variables(graph: ObjectGraph, function: FunctionType) -> dict[str, Any]:
    """The global variables that a function's code uses, followed through the user's modules."""
    parts: dict[str, Any] = {}
    for chain in sorted(global_names(function.__code__)):
        root, *attributes = chain
        if root in _MODULE_ATTRIBUTES or root.startswith("@"):  # pytest adds names with @
            continue
        if root in function.__globals__:
            file = source_file(function)
            name, part = _follow(graph, function.__globals__[root], root, attributes, file)
            if part is not None:
                parts[name] = part
        if _computes_names(function.__globals__, root, attributes):
            parts["(computed)"] = _reachable_code(graph, function)
    return parts


def describe_module(graph: ObjectGraph, module: ModuleType) -> Any:
    """A module as a value: all files of a user's module, the name of an installed one."""
    if not is_first_party(module.__name__):
        return module.__name__
    file = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or file is None:
        return graph.node(("definitions", module.__name__), partial(_describe_definitions, graph, vars(module)))
    return graph.hash_files(with_imports([Path(file)]))


def _follow(graph: ObjectGraph, value: Any, name: str, attributes: list[str], file: str) -> tuple[str, Any]:
    """Read attributes through modules and records. Returns the dotted name of the value and its JSON.

    Args:
        graph: The graph to add to.
        value: The value of the global variable.
        name: Its name.
        attributes: The attributes that the code reads from it, outermost first.
        file: The file of the code.
    """
    last = name
    while isinstance(value, ModuleType) and is_first_party(value.__name__) and attributes:
        last, attributes = attributes[0], attributes[1:]
        file = getattr(value, "__file__", None) or file
        name = f"{name}.{last}"
        try:
            value = getattr(value, last)
        except Exception:  # a module's __getattr__ may raise anything
            return name, None
    is_record = is_namespace(value) or (is_dataclass(value) and not isinstance(value, type))
    if attributes and is_record and attributes[0] in getattr(value, "__dict__", {}):
        last, value, name = attributes[0], vars(value)[attributes[0]], f"{name}.{attributes[0]}"
        return name, graph.identifiable({last: value})
    if isinstance(value, type) and "__subclasses__" in attributes:
        return f"{name}.__subclasses__", [graph.reference(value), user_subclasses(graph, value)]
    return name, _describe_variable(graph, value, last, file)


def _describe_variable(graph: ObjectGraph, value: Any, name: str, file: str) -> Any:
    """A global variable by its value.

    It counts by the statement that sets it if it contains a path or a device, changes with use, or cannot be
    fingerprinted.
    """
    if isinstance(value, ModuleType):
        return describe_module(graph, value)
    if isinstance(value, type | FunctionType):
        return graph.reference(value)
    name, file = origin_of_name(name, file)
    source = source_tree(file)
    try:
        if source is not None and (
            name in source.mutated
            or has_path_or_device(value)
            or reads_process_state(assigned_value(source.bindings(name), name))
        ):
            return _describe_changing(graph, value, name, file, source)
        if (
            source is not None
            and _is_library_object(graph, value)
            and any(map(is_definition, source.bindings(name)))
        ):
            return _statement(graph, name, file)  # a kernel or an operator: an object around the user's function
        return graph.plain(value)
    except Exception:  # user code in the value may raise anything
        return [qualified_name(type(value)), _statement(graph, name, file)]


def _describe_changing(graph: ObjectGraph, value: Any, name: str, file: str, source: SourceTree) -> list[Any]:
    """A variable that functions change, or that contains a path, a device or a clock's value."""
    statements = source.bindings(name)
    parts = [hash_syntax(statements), graph.user_callables(value)]
    node = assigned_value(statements, name)
    if name in source.mutated:
        graph.mutated_variables.append(MutatedVariable(file, name, source, node, value))
        return parts
    part = computed_part(node, value, graph.plain_data)
    return parts if part is None else [*parts, part]


def _is_library_object(graph: ObjectGraph, value: Any) -> bool:
    """Whether a value is an object of a library. Raises ConfigError for a callable with hidden state."""
    if isinstance(value, partial | BuiltinFunctionType | MethodType) or is_user_code(type(value)):
        return False
    if callable(value):
        object_state(value, graph.subject)
    return True


def _statement(graph: ObjectGraph, name: str, file: str) -> list[Any]:
    """A node for the statement that sets a variable."""
    return graph.node(("statement", name, file), partial(_describe_statement, graph, name, file))


def _describe_statement(graph: ObjectGraph, name: str, file: str) -> list[Any]:
    """The syntax of the statement, and the variables that it reads."""
    source = source_tree(file)
    statements = source.bindings(name) if source is not None else []
    modules = [module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == file]
    namespace = vars(modules[0]) if modules else {}
    names = {node.id for part in statements for node in ast.walk(part) if isinstance(node, ast.Name)} - {name}
    values = {
        read: _describe_variable(graph, namespace[read], read, file) for read in sorted(names & namespace.keys())
    }
    return [hash_syntax(statements), values]


def _computes_names(namespace: dict[str, Any], root: str, attributes: list[str]) -> bool:
    """Whether a global variable lets code reach other code without naming it (``eval``, ``importlib``)."""
    value = namespace.get(root, getattr(builtins, root, None))
    if isinstance(value, ModuleType):
        return bool(attributes) and (value.__name__, attributes[0]) in _COMPUTED_IMPORTS
    computing = (eval, exec, globals, __import__, importlib.import_module)
    return any(value is function for function in computing) or value is sys.modules


def _reachable_code(graph: ObjectGraph, function: FunctionType) -> list[Any]:
    """All code that a function which computes names may reach.

    These are the files of its package; for a script, the definitions in it and the files in its folder.
    """
    file = Path(source_file(function))
    is_script = function.__globals__.get("__name__") == "__main__" or not file.is_file()
    try:
        files = package_files(file) if file.is_file() else set()
    except ValueError as error:
        raise unidentified(graph.subject, f"{qualified_name(function)} computes names, and {error}") from None
    if not is_script:
        return graph.hash_files(files)
    node = graph.node(("definitions", "__main__"), partial(_describe_definitions, graph, function.__globals__))
    return [node, graph.hash_files(files - {file})]


def _describe_definitions(graph: ObjectGraph, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The user's functions and classes in a namespace, and the user's modules that it imports."""
    parts: dict[str, Any] = {}
    for name in sorted(namespace):
        value = namespace[name]
        if isinstance(value, type | FunctionType) and is_user_code(value):
            parts[name] = graph.reference(value)
        elif isinstance(value, ModuleType) and value.__name__ != "__main__" and is_first_party(value.__name__):
            parts[name] = describe_module(graph, value)
    return parts
