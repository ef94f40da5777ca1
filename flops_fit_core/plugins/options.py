"""The base class of a plugin's options, and marks and types for them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticUndefined, to_jsonable_python

from flops_fit_core.plugins.renamed import explain_option


class Table(BaseModel):
    """Base class of every table in an experiment file. An unknown key is an error that names the nearest valid
    key."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        populate_by_name=True,
        defer_build=True,  # keeps the import of the core fast
    )

    @model_validator(mode="wrap")
    @classmethod
    def _explain_unknown_keys(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        misplaced = _misplaced_booleans(cls, value)
        try:
            table = handler(value)
        except ValidationError as error:
            keys = [field.alias or name for name, field in cls.model_fields.items()]
            raise _with_valid_keys(error, keys, misplaced) from None
        if misplaced:
            raise ValidationError.from_exception_data(cls.__name__, misplaced)
        return table


def _misplaced_booleans(table: type[BaseModel], value: Any) -> list[InitErrorDetails]:
    """Errors for ``true`` and ``false`` in place of a number, which pydantic would read as 1 and 0."""
    values = value if isinstance(value, Mapping) else {}
    text = "give a number, not true or false"
    return [
        {
            "type": PydanticCustomError("not_a_number", "{text}", {"text": text}),
            "loc": (name,),
            "input": values[name],
        }
        for name, field in table.model_fields.items()
        if name in values and _is_misplaced(field.annotation, values[name])
    ]


def _is_misplaced(annotation: Any, value: Any) -> bool:
    kinds = _alternatives(annotation)
    if isinstance(value, bool):
        is_number = any(isinstance(kind, type) and issubclass(kind, (int, float)) for kind in kinds)
        accepts_bool = any(kind in (bool, Any) or _is_literal(kind, value) for kind in kinds)
        return is_number and not accepts_bool
    if isinstance(value, list | tuple):
        items = [item for kind in kinds if get_origin(kind) in (list, tuple, set) for item in get_args(kind)]
        inner = Union[tuple(item for item in items if item is not Ellipsis)] if items else Any  # noqa: UP007
        return any(_is_misplaced(inner, item) for item in value)
    return False


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without ``Annotated``."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _alternatives(member)]
    return [annotation]


def _is_literal(kind: Any, value: bool) -> bool:
    return get_origin(kind) is Literal and any(literal is value for literal in get_args(kind))


def _with_valid_keys(
    error: ValidationError, keys: list[str], misplaced: list[InitErrorDetails]
) -> ValidationError:
    """The error with the valid keys in the message of every unknown key, and with the misplaced booleans."""
    lines: list[InitErrorDetails] = list(misplaced)
    for line in error.errors():
        kind: str | PydanticCustomError = line["type"]
        if kind == "extra_forbidden" and len(line["loc"]) == 1:
            text = explain_option(str(line["loc"][0]), keys) or _unknown_key(str(line["loc"][0]), keys)
            kind = PydanticCustomError("unknown_key", "{text}", {"text": text})
        else:
            text = "Input should be a list" if line["type"] == "tuple_type" else line["msg"]
            kind = PydanticCustomError(line["type"], "{text}", {"text": text})
        lines.append({"type": kind, "loc": line["loc"], "input": line["input"]})
    return ValidationError.from_exception_data(error.title, lines)


def _unknown_key(key: str, keys: list[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown; {hint}valid keys: {', '.join(keys) or 'none'}"


class Options(Table):
    """Base class of a plugin's options. Unknown keys are errors. Instances are immutable."""


@dataclass(frozen=True)
class Runtime:
    """Marks an option that changes how a run is trained but not its result. It is not part of a run's id.

    ``threads: Annotated[int, Runtime()] = 1``
    """


@dataclass(frozen=True)
class RunsCode:
    """Marks an option that names code which training runs: a function, a program, a shell line, a server.

    ``script: Annotated[str, RunsCode()]``

    Commands that train from a study's folder need the user's consent for the values of these options. The type
    ``ImportPath`` has this mark.
    """


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


LocalPath = Annotated[str, AfterValidator(_absolute)]
"""Type of an option that names a file or a folder. A relative path is relative to the working directory in which
the experiment is read. Records hold the absolute path, so that workers in other directories find it."""

EvalSetName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Type of the name of an additional held-out set."""


def identity_options(options: Options) -> dict[str, JsonValue]:
    """The options that identify a run: those that differ from their default and are not ``Runtime()``."""
    return _changed(options, lambda name: not _is_runtime(options, name))


def runtime_options(options: Options) -> dict[str, JsonValue]:
    """The ``Runtime()`` options that differ from their default."""
    return _changed(options, lambda name: _is_runtime(options, name))


def _changed(options: Options, is_selected: Callable[[str], bool]) -> dict[str, JsonValue]:
    values = options.model_dump(mode="json", exclude_defaults=True)
    return {
        name: value for name, value in values.items() if is_selected(name) and value != _default(options, name)
    }


def _default(options: Options, name: str) -> Any:
    """The default as JSON. It may be written as ``[0.9, 0.95]`` where validation returns a tuple."""
    field = type(options).model_fields[name]
    return (
        PydanticUndefined
        if field.is_required()
        else to_jsonable_python(field.get_default(call_default_factory=True))
    )


def code_options(options: type[Options]) -> list[str]:
    """Names, and aliases, of the options with the mark ``RunsCode()``, also inside another type: ``ImportPath |
    None``, ``list[ImportPath]``, or a table with such an option."""
    fields = {name: field for name, field in options.model_fields.items() if _runs_code(field)}
    return [*fields, *(field.alias for field in fields.values() if field.alias)]


def _runs_code(item: Any, outer: frozenset[type] = frozenset()) -> bool:
    """Whether a field, a type or a mark has the mark ``RunsCode()``. ``outer``: the tables that contain it."""
    if isinstance(item, RunsCode) or item is RunsCode:
        return True
    if isinstance(item, FieldInfo):
        return any(_runs_code(part, outer) for part in (item.annotation, *item.metadata))
    if isinstance(item, type) and issubclass(item, BaseModel):
        fields = item.model_fields.values() if item not in outer else ()
        return any(_runs_code(field, outer | {item}) for field in fields)
    return any(_runs_code(part, outer) for part in get_args(item))


def _is_runtime(options: Options, name: str) -> bool:
    marks = type(options).model_fields[name].metadata
    return any(isinstance(mark, Runtime) or mark is Runtime for mark in marks)
