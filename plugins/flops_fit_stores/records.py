"""Convert results to columns and back. Used by every store."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from flops_fit_core import RunResult, StoreError

COLUMNS: dict[str, type] = {
    "id": str,
    "attempt": int,
    "status": str,
    "model": str,
    "params": int,
    "tokens": int,
    "flops": float,
    "loss": float,
    "seed": int,
    "budget": float,
    "seconds": float,
    "finished": str,
    "superseded": int,
    "record": str,
}
"""Columns of a table of results. ``record`` is the complete result as JSON; the others serve queries."""


def validated(result: RunResult) -> RunResult:
    """The result, validated again: a copy made without validation may contain NaN.

    Raises pydantic's ValidationError, a ValueError.
    """
    return RunResult.model_validate(result.model_dump())


def to_columns(result: RunResult) -> dict[str, Any]:
    """The values of the columns of a result."""
    return {
        "id": result.id,
        "attempt": result.attempt,
        "status": result.status,
        "model": result.run.model.name,
        "params": result.run.params,
        "tokens": result.tokens,
        "flops": result.flops,
        "loss": result.loss,
        "seed": result.run.seed,
        "budget": result.run.budget,
        "seconds": result.seconds,
        "finished": result.finished,
        "superseded": result.superseded,
        "record": result.model_dump_json(),
    }


def parse_record(record: str | bytes, location: object, run_id: str, attempt: int) -> RunResult:
    """The result of a record. Raises StoreError for an invalid record."""
    try:
        return RunResult.model_validate_json(record)
    except ValidationError as error:
        raise invalid_record(location, run_id, attempt, error) from None


def invalid_record(location: object, run_id: str, attempt: object, error: ValidationError) -> StoreError:
    """The error for a record at ``location`` that is not a valid RunResult."""
    return StoreError(
        f"{location}: cannot read the result of run {run_id}, attempt {attempt}: {first_mistake(error)}. It was "
        f"edited, or written by another version of flops-fit: use that version, or delete this result"
    )


def first_mistake(error: ValidationError) -> str:
    """The field and the message of the first mistake."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or "the record"
    return f"{field}: {first['msg']}"


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector, which would scan thousands of new live objects repeatedly. This halves the time
    to read many results."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
