"""Fingerprints of classes: code, base classes, methods, attributes and fields."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Set
from typing import Any

from flops_fit_core.api.fingerprint.code_names import reads_attribute
from flops_fit_core.api.fingerprint.computed_values import assigned_value, computed_part
from flops_fit_core.api.fingerprint.item_hash import qualified_name, unidentified
from flops_fit_core.api.fingerprint.object_graph import MutatedVariable, ObjectGraph
from flops_fit_core.api.fingerprint.object_parts import (
    class_attributes,
    functions_of_member,
    has_default,
    has_path_or_device,
    is_generated,
    is_user_code,
    types_in,
)
from flops_fit_core.api.fingerprint.source_lookup import ClassTree, class_tree
from flops_fit_core.plugins.syntax_hash import hash_syntax


def describe_class(graph: ObjectGraph, kind: type) -> dict[str, Any]:
    """Name, syntax tree, base classes, methods, attributes and fields of a user's class."""
    methods = {name: list(functions_of_member(member)) for name, member in vars(kind).items()}
    functions = [function for name in methods for function in methods[name]]
    tree = class_tree(kind, functions, graph.module_files.get(kind.__module__))
    if tree is None and not functions and kind.__module__ == "__main__" and graph.is_strict:
        raise unidentified(graph.subject, f"{qualified_name(kind)} has no source text")
    parts: dict[str, Any] = {"name": qualified_name(kind)}
    if tree is not None:
        graph.module_files.setdefault(kind.__module__, tree.file)
        parts["code"] = hash_syntax([tree.node])
    parts["bases"] = [graph.reference(base) for base in kind.__bases__]
    parts["metaclass"] = graph.reference(type(kind)) if is_user_code(type(kind)) else None
    parts["methods"] = {
        name: [graph.reference(function) for function in written]
        for name in sorted(methods)
        if (written := [function for function in methods[name] if not is_generated(function, kind, tree)])
    }
    parts["attributes"] = _attributes(graph, kind, tree, has_methods=bool(functions))
    with graph.lenient():
        parts["fields"] = _field_defaults(graph, kind)
        parts["annotations"] = _annotated_classes(graph, kind)
        parts["field names"] = [] if tree is not None else list(vars(kind).get("__dataclass_fields__", {}))
        if any(reads_attribute(function.__code__, "__subclasses__") for function in functions):
            parts["subclasses"] = user_subclasses(graph, kind)
    return {name: part for name, part in parts.items() if part}


def _attributes(graph: ObjectGraph, kind: type, tree: ClassTree | None, *, has_methods: bool) -> dict[str, Any]:
    """The attributes that are not methods.

    With source text, an attribute that cannot be fingerprinted is left out: the syntax tree contains it.
    """
    attributes = {
        name: value for name, value in class_attributes(kind) if tree is None or not has_path_or_device(value)
    }
    mutated = tree.source.mutated & attributes.keys() if tree is not None else set()
    registries = {name: graph.user_callables(attributes[name]) for name in sorted(mutated)}
    if tree is not None:
        registries |= _class_settings(graph, kind, tree, mutated)
    constants = {name: value for name, value in attributes.items() if name not in mutated}
    is_compiled = tree is None and not has_methods  # descriptors of compiled classes may hide their content
    if is_compiled or (tree is not None and "<locals>" not in kind.__qualname__):
        parts = graph.identifiable(constants)
    else:
        parts = {name: graph.plain_or_type(constants[name]) for name in sorted(constants)}
    return parts | {name: value for name, value in registries.items() if value}


def _class_settings(graph: ObjectGraph, kind: type, tree: ClassTree, mutated: Set[str]) -> dict[str, Any]:
    """Of attributes with paths or devices, the other data. Mutated attributes are queued in the graph."""
    parts = {}
    for name, value in class_attributes(kind):
        statements = [part for part in tree.node.body if isinstance(part, ast.Assign | ast.AnnAssign)]
        node = next(filter(None, (assigned_value([part], name) for part in statements)), None)
        if name in mutated:
            graph.mutated_variables.append(MutatedVariable(tree.file, name, tree.source, node, value))
        elif has_path_or_device(value):
            parts[f"{name} (computed)"] = computed_part(node, value, graph.plain_data)
    return {name: part for name, part in parts.items() if part is not None}


def _field_defaults(graph: ObjectGraph, kind: type) -> dict[str, Any]:
    """Default values and factories of a dataclass or a pydantic model."""
    fields = vars(kind).get("__dataclass_fields__") or vars(kind).get("__pydantic_fields__") or {}
    defaults = ((name, getattr(field, "default", None)) for name, field in fields.items())
    factories = ((f"{name}()", getattr(field, "default_factory", None)) for name, field in fields.items())
    return graph.identifiable({name: value for name, value in (*defaults, *factories) if has_default(value)})


def _annotated_classes(graph: ObjectGraph, kind: type) -> list[Any]:
    """The user's classes in the types of fields: pydantic creates instances of them."""
    try:
        annotations = inspect.get_annotations(kind, eval_str=kind.__module__ != "__main__")
    except Exception:  # evaluated annotations may raise anything
        return []
    classes = {id(part): part for value in annotations.values() for part in types_in(value)}
    return [graph.reference(part) for part in sorted(classes.values(), key=qualified_name)]


def user_subclasses(graph: ObjectGraph, kind: type) -> list[Any]:
    """The user's subclasses of a class, and theirs."""
    children: list[type] = sorted(filter(is_user_code, kind.__subclasses__()), key=qualified_name)
    return [part for child in children for part in (graph.reference(child), *user_subclasses(graph, child))]
