"""Validation errors in words that a user can act on."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError


def explain(error: ValidationError) -> str:
    """A validation error, one line a mistake: where it is, what is wrong, what was given."""
    lines = []
    mistakes = error.errors(include_url=False)
    for line in mistakes:
        if line["type"] == "too_short" and any(_is_below(other["loc"], line["loc"]) for other in mistakes):
            continue  # items that are wrong themselves are not counted
        place = ".".join(str(part) for part in line["loc"] if not _is_schema_noise(part)) or "(top level)"
        given = "" if line["type"] in ("missing", "plugin") else f" (given: {short(line['input'])})"
        lines.append(f"  {place}: {_hint(line) or line['msg'].removeprefix('Value error, ')}{given}")
    return "\n".join(dict.fromkeys(lines))


def _hint(line: Any) -> str:
    """Words of our own where pydantic's do not tell what to type."""
    if line["loc"][:2] == ("sweep", "sizes") and line["type"] == "dict_type":
        return f"a size is a table of options of the model, as {{ width = {short(line['input'])} }}"
    return ""


def _is_below(place: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _is_schema_noise(part: int | str) -> bool:
    """Unions add the names of their alternatives to a location."""
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "bool", "constrained-int"))


def short(value: Any) -> str:
    """A value as it is shown in an error."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def moved(error: ValidationError, under: tuple[str | int, ...]) -> ValidationError:
    """The same mistakes at another place: sizes are validated as the model's options."""
    return ValidationError.from_exception_data(
        error.title,
        [
            {
                "type": PydanticCustomError("moved", "{text}", {"text": line["msg"]}),
                "loc": (*under, *line["loc"]),
                "input": line["input"],
            }
            for line in error.errors()
        ],
    )
