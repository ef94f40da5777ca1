"""What all stores ask of a result before they take it, how they show it, and what they say of one they cannot
read."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flops_fit_core import RunResult, StoreError

START_ANEW = "To start anew, move it away or choose another folder with --out"


def checked(result: RunResult) -> RunResult:
    """The result, validated again: a copy that was made without validation may hold NaN.

    Raises pydantic's ValidationError, a ValueError.
    """
    return RunResult.model_validate(result.model_dump())


def flat(result: RunResult) -> dict[str, Any]:
    """The values of a result that people ask for, by column; ``record`` is all of it as JSON, which alone is read
    back."""
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
        "record": result.model_dump_json(),
    }


def is_long(value: Any) -> bool:
    """Whether this is an integer that does not fit into 64 bits."""
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def from_record(record: str, where: object, run_id: str, attempt: int) -> RunResult:
    """The result again. Raises StoreError for a record that was edited into nonsense."""
    try:
        return RunResult.model_validate_json(record)
    except ValidationError as error:
        raise unreadable(where, run_id, attempt, error) from None


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which would go again and again over thousands of new objects, all of
    them in use. Reading many results takes half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def unreadable(where: object, run_id: str, attempt: object, error: ValidationError) -> StoreError:
    """What to say of a record, stored at ``where``, that is no valid RunResult."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "the record"
    return StoreError(
        f"{where}: cannot read the result of run {run_id}, attempt {attempt}: {place}: {first['msg']}. It was "
        f"edited, or written by another version of flops-fit: use that version, or delete this one result"
    )


def make_folder(folder: Path) -> None:
    """Make the study's folder where it is missing. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot make this folder for the results: {error.strerror}") from None
