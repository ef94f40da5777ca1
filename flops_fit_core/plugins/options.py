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
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticUndefined, to_jsonable_python


class Table(BaseModel):
    """Base of every table a user writes. Unknown keys are errors that name the nearest known one."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        populate_by_name=True,
        defer_build=True,  # importing the core is to take a fraction of a second
    )

    @model_validator(mode="wrap")
    @classmethod
    def _explain_unknown_keys(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        misplaced = _misplaced_booleans(cls, value)
        try:
            table = handler(value)
        except ValidationError as error:
            known = [field.alias or name for name, field in cls.model_fields.items()]
            raise _with_known_keys(error, known, misplaced) from None
        if misplaced:
            raise ValidationError.from_exception_data(cls.__name__, misplaced)
        return table


def _misplaced_booleans(table: type[BaseModel], value: Any) -> list[InitErrorDetails]:
    """Errors for ``true`` and ``false`` where a number is wanted, which pydantic takes for 1 and 0."""
    given = value if isinstance(value, Mapping) else {}
    text = "give a number, not true or false"
    return [
        {
            "type": PydanticCustomError("not_a_number", "{text}", {"text": text}),
            "loc": (name,),
            "input": given[name],
        }
        for name, field in table.model_fields.items()
        if name in given and _is_misplaced(field.annotation, given[name])
    ]


def _is_misplaced(annotation: Any, value: Any) -> bool:
    kinds = _alternatives(annotation)
    if isinstance(value, bool):
        is_number = any(isinstance(kind, type) and issubclass(kind, (int, float)) for kind in kinds)
        takes_bool = any(kind in (bool, Any) or _is_literal(kind, value) for kind in kinds)
        return is_number and not takes_bool
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


def _with_known_keys(
    error: ValidationError, known: list[str], misplaced: list[InitErrorDetails]
) -> ValidationError:
    lines: list[InitErrorDetails] = list(misplaced)
    for line in error.errors():
        kind: str | PydanticCustomError = line["type"]
        if kind == "extra_forbidden" and len(line["loc"]) == 1:
            close = difflib.get_close_matches(str(line["loc"][0]), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            there = ", ".join(known) or "none"
            kind = PydanticCustomError("unknown_key", "{text}", {"text": f"unknown; {hint}there is: {there}"})
        else:
            text = "Input should be a list" if line["type"] == "tuple_type" else line["msg"]
            kind = PydanticCustomError(line["type"], "{text}", {"text": text})
        lines.append({"type": kind, "loc": line["loc"], "input": line["input"]})
    return ValidationError.from_exception_data(error.title, lines)


class Options(Table):
    """Base of every plugin's options. Unknown keys are errors; validated values never change."""


@dataclass(frozen=True)
class Runtime:
    """Marks an option that changes how a run is done but not its result, so that it is no part of a run's id.

    ``threads: Annotated[int, Runtime()] = 1``
    """


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


LocalPath = Annotated[str, AfterValidator(_absolute)]
"""Type of an option that names a file or a folder: relative to the working directory when it is read, absolute in
records, so that workers find it from wherever they are."""

HeldOutName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Type of a further held-out set's name."""


def identity_options(options: Options) -> dict[str, JsonValue]:
    """The options that identify a run: those that differ from their default and are not ``Runtime()``."""
    return _changed(options, lambda name: not _is_runtime(options, name))


def runtime_options(options: Options) -> dict[str, JsonValue]:
    """The ``Runtime()`` options that differ from their default."""
    return _changed(options, lambda name: _is_runtime(options, name))


def _changed(options: Options, wanted: Callable[[str], bool]) -> dict[str, JsonValue]:
    dumped = options.model_dump(mode="json", exclude_defaults=True)
    return {name: value for name, value in dumped.items() if wanted(name) and value != _default(options, name)}


def _default(options: Options, name: str) -> Any:
    """The default in JSON: an author may write ``[0.9, 0.95]`` where validation makes a tuple of it."""
    field = type(options).model_fields[name]
    return (
        PydanticUndefined
        if field.is_required()
        else to_jsonable_python(field.get_default(call_default_factory=True))
    )


def _is_runtime(options: Options, name: str) -> bool:
    marks = type(options).model_fields[name].metadata
    return any(isinstance(mark, Runtime) or mark is Runtime for mark in marks)
