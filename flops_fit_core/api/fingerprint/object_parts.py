"""Parts and kinds of Python objects, by which they are identified."""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cached_property, partialmethod
from pathlib import Path, PurePath
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, get_args, get_origin

from flops_fit_core.api.fingerprint.item_hash import qualified_name
from flops_fit_core.api.fingerprint.source_lookup import ClassTree, function_tree, source_tree
from flops_fit_core.plugins.first_party import imported_files, is_first_party

_DEVICE = re.compile(r"(auto|cpu|cuda|hip|hpu|mps|tpu|xla|xpu)(:\d+)?")


def origin_of_name(name: str, home: str) -> tuple[str, str]:
    """The name and file of a variable where it is set, if it was imported by ``from module import name``."""
    for _ in range(10):
        source = source_tree(home)
        imports_of_it = (
            [part for part in source.bindings(name) if isinstance(part, ast.ImportFrom)] if source else []
        )
        if not imports_of_it:
            break
        statement = imports_of_it[0]
        original = next(alias.name for alias in statement.names if name in (alias.asname, alias.name))
        files = [*imported_files(statement.module or "", [original], statement.level, Path(home).parent)]
        if not files or str(files[0]) == home:
            break
        name, home = original, str(files[0])
    return name, home


def is_definition(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def is_users(thing: Any) -> bool:
    """Whether a class or function is the user's own, which may change under its name."""
    if isinstance(thing, FunctionType):  # functools.wraps gives a wrapper the module of what it wraps
        return is_first_party(str(thing.__globals__.get("__name__") or "__main__"))
    module = getattr(thing, "__module__", None) or "__main__"
    if module == "types" and "__dataclass_fields__" in getattr(thing, "__dict__", {}):
        return True  # make_dataclass does not name the module before Python 3.12
    return is_first_party(module)


def undecorated(function: Any) -> Any:
    """Without what torch has put around it: ``torch.no_grad()`` and the like, and around an optimizer's ``step``
    something of its own as soon as there is an instance."""
    while (
        isinstance(function, FunctionType)
        and hasattr(function, "__wrapped__")
        and str(function.__globals__.get("__name__")).partition(".")[0] == "torch"
    ):
        function = function.__wrapped__
    return function


def is_generated(function: FunctionType, kind: type, tree: ClassTree | None) -> bool:
    """Whether a method follows from the source or the fields of its class: made by a dataclass or attrs."""
    inner = inspect.unwrap(function)
    if inner.__globals__.get("__name__") in {"dataclasses", "collections", "enum"}:
        return True
    if tree is None:
        return "__dataclass_fields__" in vars(kind) and inner.__code__.co_filename == "<string>"
    has_source = function_tree(inner) is not None and "generated" not in inner.__code__.co_filename
    return not has_source and inner.__name__ != "<lambda>"


def class_attributes(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class holds beside methods and what Python puts there."""
    if issubclass(kind, Enum):  # what else there is depends on the version of Python
        yield from ((name, member.value) for name, member in kind.__members__.items())
        return
    for name, value in vars(kind).items():
        is_pythons = (name.startswith("_") and name.endswith("_")) or name == "_abc_impl"
        is_slot = inspect.isdatadescriptor(value) and not is_users(type(value))
        if not is_pythons and not list(functions_of_member(value)) and not is_slot:
            yield name, value


def functions_of_member(member: Any) -> Iterator[FunctionType]:
    """The functions of a method, also of a static or cached one and of a property."""
    is_wrapper = isinstance(member, (staticmethod, classmethod, property, cached_property, partialmethod))
    names = ("__func__", "fget", "fset", "fdel", "func") if is_wrapper else ()
    for function in (member, *(getattr(member, name, None) for name in names)):
        inner = undecorated(function)
        if isinstance(inner, FunctionType) and not _is_torchs(inner):
            yield inner


def _is_torchs(function: FunctionType) -> bool:
    return str(function.__globals__.get("__name__")).partition(".")[0] == "torch"


def closure_values(function: FunctionType) -> dict[str, Any]:
    """What it closes over, but for the class that it is a method of (Python's own ``__class__``)."""
    values = {}
    for name, cell in sorted(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)):
        if name != "__class__":
            with contextlib.suppress(ValueError):  # not yet filled
                values[name] = cell.cell_contents
    return values


def describe_code(code: CodeType) -> list[Any]:
    constants = [
        describe_code(value) if isinstance(value, CodeType) else _constant(value) for value in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _constant(value: Any) -> str:
    # A set of texts shows itself in another order in every process.
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def shows_itself(value: Any) -> bool:
    """Whether a value without JSON is all in its ``repr``, in every process."""
    import torch

    plain = float | complex | bytes | range | slice | PurePath | torch.dtype | torch.device | type(...)
    return isinstance(value, plain) or type(value).__module__ == "dataclasses"  # its marks in what it generates


def is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | None)


def is_namespace(value: Any) -> bool:
    return (
        isinstance(value, SimpleNamespace)
        or f"{type(value).__module__}.{type(value).__name__}" == "argparse.Namespace"
    )


def is_place(value: Any) -> bool:
    """Whether a value is a path or a device, neither of which is in an id."""
    if isinstance(value, str):
        return Path(value).is_absolute() or _DEVICE.fullmatch(value) is not None
    return isinstance(value, PurePath) or qualified_name(type(value)) == "torch.device"


def is_held(name: str) -> bool:
    """Whether an attribute is an object's own: functools gives wrappers more in newer versions of Python, and
    configurations of transformers have its version."""
    is_pythons = name.startswith("__") and name.endswith("__") and name != "__wrapped__"
    return not is_pythons and name != "transformers_version"


def holds_place(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(holds_place, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(holds_place, value))
    return is_place(value)


def has_value(value: Any) -> bool:
    """Whether a field has this default: dataclasses and pydantic mark those that have none."""
    return value is not None and type(value).__name__ not in {"_MISSING_TYPE", "PydanticUndefinedType"}


def types_in(annotation: Any) -> Iterator[type]:
    """The user's own classes in an annotation such as ``list[Block] | None``."""
    for part in (get_origin(annotation), annotation, *get_args(annotation)):
        if part is not annotation and get_args(part):
            yield from types_in(part)
        elif isinstance(part, type) and is_users(part):
            yield part
