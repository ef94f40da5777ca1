"""Tests of objects and parts of objects that fingerprints use."""

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


def origin_of_name(name: str, file: str) -> tuple[str, str]:
    """Name and file of the assignment of a variable, followed through ``from module import name``."""
    for _ in range(10):
        source = source_tree(file)
        statements = source.bindings(name) if source else []
        statement = next((part for part in statements if isinstance(part, ast.ImportFrom)), None)
        if statement is None:
            break
        original = next(alias.name for alias in statement.names if name in (alias.asname, alias.name))
        files = [*imported_files(statement.module or "", [original], statement.level, Path(file).parent)]
        if not files or str(files[0]) == file:
            break
        name, file = original, str(files[0])
    return name, file


def is_definition(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def is_user_code(item: Any) -> bool:
    """Whether a class or function is user code, which may change without a change of its name."""
    if isinstance(item, FunctionType):  # functools.wraps copies __module__ from the wrapped function
        return is_first_party(str(item.__globals__.get("__name__") or "__main__"))
    module = getattr(item, "__module__", None) or "__main__"
    if module == "types" and "__dataclass_fields__" in getattr(item, "__dict__", {}):
        return True  # make_dataclass does not set the module before Python 3.12
    return is_first_party(module)


def without_torch_wrappers(function: Any) -> Any:
    """The function inside torch's wrappers: decorators such as ``torch.no_grad()``, and the hook wrapper around an
    optimizer's ``step``, which torch adds with the first instance."""
    while (
        isinstance(function, FunctionType)
        and hasattr(function, "__wrapped__")
        and str(function.__globals__.get("__name__")).partition(".")[0] == "torch"
    ):
        function = function.__wrapped__
    return function


def is_generated(function: FunctionType, kind: type, tree: ClassTree | None) -> bool:
    """Whether a dataclass, attrs or another library generated a method from the fields of its class."""
    inner = inspect.unwrap(function)
    if inner.__globals__.get("__name__") in {"dataclasses", "collections", "enum"}:
        return True
    if tree is None:
        return "__dataclass_fields__" in vars(kind) and inner.__code__.co_filename == "<string>"
    has_source = function_tree(inner) is not None and "generated" not in inner.__code__.co_filename
    return not has_source and inner.__name__ != "<lambda>"


def class_attributes(kind: type) -> Iterator[tuple[str, Any]]:
    """The attributes of a class, without methods and without Python's internal attributes."""
    if issubclass(kind, Enum):  # further attributes depend on the version of Python
        yield from ((name, member.value) for name, member in kind.__members__.items())
        return
    for name, value in vars(kind).items():
        is_python_internal = (name.startswith("_") and name.endswith("_")) or name == "_abc_impl"
        is_slot = inspect.isdatadescriptor(value) and not is_user_code(type(value))
        if not is_python_internal and not list(functions_of_member(value)) and not is_slot:
            yield name, value


def functions_of_member(member: Any) -> Iterator[FunctionType]:
    """The functions of a method (static, cached and partial ones included) or a property."""
    is_wrapper = isinstance(member, (staticmethod, classmethod, property, cached_property, partialmethod))
    names = ("__func__", "fget", "fset", "fdel", "func") if is_wrapper else ()
    for function in (member, *(getattr(member, name, None) for name in names)):
        inner = without_torch_wrappers(function)
        if isinstance(inner, FunctionType) and not _is_torch_function(inner):
            yield inner


def _is_torch_function(function: FunctionType) -> bool:
    return str(function.__globals__.get("__name__")).partition(".")[0] == "torch"


def closure_values(function: FunctionType) -> dict[str, Any]:
    """The variables of a function's closure, without the class of a method (``__class__``)."""
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
    # The order of a set of texts differs between processes.
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def has_stable_repr(value: Any) -> bool:
    """Whether the ``repr`` of a value without JSON form is complete and stable across processes."""
    import torch

    plain = float | complex | bytes | range | slice | PurePath | torch.dtype | torch.device | type(...)
    return isinstance(value, plain) or type(value).__module__ == "dataclasses"  # sentinels in generated methods


def is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | None)


def is_namespace(value: Any) -> bool:
    return (
        isinstance(value, SimpleNamespace)
        or f"{type(value).__module__}.{type(value).__name__}" == "argparse.Namespace"
    )


def is_path_or_device(value: Any) -> bool:
    """Whether a value is a path or a device. Neither is part of a run's id."""
    if isinstance(value, str):
        return Path(value).is_absolute() or _DEVICE.fullmatch(value) is not None
    return isinstance(value, PurePath) or qualified_name(type(value)) == "torch.device"


def is_state_attribute(name: str) -> bool:
    """Whether an attribute is state of an object, rather than of Python or of a library.

    Newer versions of functools add attributes to wrappers; configurations of transformers contain its version.
    """
    is_python_internal = name.startswith("__") and name.endswith("__") and name != "__wrapped__"
    return not is_python_internal and name != "transformers_version"


def has_path_or_device(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(has_path_or_device, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(has_path_or_device, value))
    return is_path_or_device(value)


def has_default(value: Any) -> bool:
    """Whether a field has a default. dataclasses and pydantic mark a missing default with a sentinel."""
    return value is not None and type(value).__name__ not in {"_MISSING_TYPE", "PydanticUndefinedType"}


def types_in(annotation: Any) -> Iterator[type]:
    """The user's classes in an annotation such as ``list[Block] | None``."""
    for part in (get_origin(annotation), annotation, *get_args(annotation)):
        if part is not annotation and get_args(part):
            yield from types_in(part)
        elif isinstance(part, type) and is_user_code(part):
            yield part
