"""Code that the stores share: validate results, convert them to columns and back, and build error messages."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flops_fit_core import RunResult, StoreError

START_NEW = "To start with an empty store, move it away or choose another folder with --out"


class OtherFile(StoreError):
    """An intact file of another program, or of a newer version of flops-fit."""


class Damage(Exception):
    """A file of a store is damaged. The message is the reason, for :func:`damaged_store`."""


def damaged_store(path: Path, reason: str, intact: int) -> StoreError:
    """The error for a damaged store.

    Args:
        path: The store's main file, in the study's folder.
        reason: The damage.
        intact: Number of results that can be read.
    """
    folder = path.parent
    return StoreError(
        f"{path}: damaged ({reason}). {intact} results are intact, and no file was changed. "
        f"'flops-fit store check {folder}' lists the damage, 'flops-fit store repair {folder}' keeps every intact "
        f"result. {START_NEW}"
    )


def validated(result: RunResult) -> RunResult:
    """The result, validated again: a copy made without validation may contain NaN.

    Raises pydantic's ValidationError, a ValueError.
    """
    return RunResult.model_validate(result.model_dump())


def to_columns(result: RunResult) -> dict[str, Any]:
    """Column -> value, for queries. ``record`` is the complete result as JSON; stores read only this column."""
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


def exceeds_64_bits(value: Any) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def parse_record(record: str | bytes, location: object, run_id: str, attempt: int) -> RunResult:
    """The result of a record. Raises StoreError for an invalid record."""
    try:
        return RunResult.model_validate_json(record)
    except ValidationError as error:
        raise invalid_record(location, run_id, attempt, error) from None


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


def invalid_record(location: object, run_id: str, attempt: object, error: ValidationError) -> StoreError:
    """The error for a record at ``location`` that is not a valid RunResult."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or "the record"
    return StoreError(
        f"{location}: cannot read the result of run {run_id}, attempt {attempt}: {field}: {first['msg']}. It was "
        f"edited, or written by another version of flops-fit: use that version, or delete this result"
    )


def other_program(path: Path, format_name: str) -> OtherFile:
    return OtherFile(f"{path}: a file of another program, not {format_name}. {START_NEW}")


def wrong_version(path: Path, version: object, supported: int) -> OtherFile:
    return OtherFile(
        f"{path}: written by a newer flops-fit: its version is {version!r}, the latest supported here is "
        f"{supported}: pip install -U flops-fit"
    )


def make_folder(folder: Path) -> None:
    """Create the study's folder. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot create this folder for the results: {error.strerror}") from None
