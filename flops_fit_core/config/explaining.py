"""Turn pydantic's validation errors into messages for users."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

MOST_MISTAKES = 20
"""The most mistakes that a message lists."""


def explain(error: ValidationError) -> str:
    """A line per mistake: its key, the problem, the value given."""
    lines = []
    mistakes = error.errors(include_url=False)
    for line in mistakes:
        if line["type"] == "too_short" and any(_is_below(other["loc"], line["loc"]) for other in mistakes):
            continue  # pydantic does not count invalid items
        key = ".".join(str(part) for part in line["loc"] if not _is_schema_noise(part)) or "(top level)"
        value = "" if line["type"] in ("missing", "plugin") else f" (given: {short(line['input'])})"
        lines.append(f"  {key}: {_hint(line) or line['msg'].removeprefix('Value error, ')}{value}")
    lines = list(dict.fromkeys(lines))
    more = [f"  and {len(lines) - MOST_MISTAKES:,} more mistakes"] if len(lines) > MOST_MISTAKES else []
    return "\n".join(lines[:MOST_MISTAKES] + more)


def _hint(line: Any) -> str:
    """A clearer text than pydantic's, or an empty one."""
    if line["loc"][:2] == ("sweep", "sizes") and line["type"] == "dict_type":
        return f"a size is a table of model options, such as {{ width = {short(line['input'])} }}"
    return ""


def _is_below(key: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    return len(key) > len(other) and key[: len(other)] == other


def _is_schema_noise(part: int | str) -> bool:
    """Whether pydantic added this part to name an alternative of a union."""
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "bool", "constrained-int"))


def short(value: Any) -> str:
    """A value for an error message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def moved(error: ValidationError, under: tuple[str | int, ...]) -> ValidationError:
    """The same mistakes below another key, because sizes are validated as model options."""
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
