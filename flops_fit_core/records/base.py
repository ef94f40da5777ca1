"""The base class of records, and the hash that identifies a record by its values."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

Positive = Annotated[float, Field(gt=0)]


def _refuse_not_finite(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("Input should be a finite number")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_not_finite(item)
    return value


FiniteJson = Annotated[JsonValue, AfterValidator(_refuse_not_finite)]
"""A JSON value. When pydantic reads JSON text, ``allow_inf_nan`` does not cover the numbers in a JsonValue."""


class Record(BaseModel):
    """Base of all records: frozen, no unknown keys, no NaN or infinity."""

    # Validators are built when first used, because importing the core must take a fraction of a second.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields replaced, not validated. Cached properties, such as ids, are computed again."""
        copy = super().model_copy(update=update, deep=deep)
        for name in set(copy.__dict__) - set(type(self).model_fields):
            del copy.__dict__[name]
        return copy


def canonical_json(value: Any) -> str:
    """JSON text that depends only on the value: sorted keys, floats to 12 significant digits, 1.0 as 1."""
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: Any) -> Any:
    if isinstance(value, float):
        rounded = float(f"{value:.12g}")
        return int(rounded) if rounded.is_integer() else rounded
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def content_hash(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of :func:`canonical_json`.

    Raises ValueError for NaN or infinity, which JSON cannot represent.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
