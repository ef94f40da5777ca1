"""Read the intact records of a damaged ``json`` store, and write a new store with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flops_fit_core import RunResult, StoreError
from flops_fit_stores.checksums import FIELD, is_intact, sealed
from flops_fit_stores.document import Document
from flops_fit_stores.errors import Damage, OtherFile
from flops_fit_stores.journal import Journal
from flops_fit_stores.json_records import LOG_FORMAT, LOG_VERSION, count_path, log_path, record_of
from flops_fit_stores.lower_bound import LowerBound
from flops_fit_stores.records import first_mistake

_RECORD_START = re.compile(r'\{\s*"id"\s*:')
"""Every record starts with the field ``id``."""
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class DamagedPlace:
    """A damaged place of a store."""

    file: Path
    place: str
    """For example ``line 3``, or ``run 0123, attempt 1``; empty for the complete file."""
    reason: str


def read_records(path: Path) -> tuple[list[RunResult], list[DamagedPlace]]:
    """The intact results of a store, in the order in which they were added, and its damaged places.

    Never raises because of damage, changes nothing and needs no lock. A record without a checksum, from an earlier
    version, is intact if it is a valid result. Raises StoreError for intact files of another program or of a newer
    version of flops-fit.

    Args:
        path: ``results.json``. Its log and lower bound are in the same folder.
    """
    damage: list[DamagedPlace] = []
    intact: dict[tuple[str, int], RunResult] = {}
    for file, place, record in _candidates(path, damage):
        result = _validate(record)
        if isinstance(result, RunResult):
            intact[result.id, result.attempt] = result
        else:
            damage.append(DamagedPlace(file, place, result))
    results = list(intact.values())
    damage += _check_count(path, len(results))
    return results, damage


def write_records(path: Path, results: Sequence[RunResult]) -> None:
    """Replace all files of a store by a store with these results.

    If it is interrupted, call it again. The caller holds the store's lock and has copied the damaged files. Raises
    StoreError.
    """
    Document(path).write([sealed(record_of(result)) for result in results], "")
    Journal(log_path(path), LOG_FORMAT, LOG_VERSION).remove()
    LowerBound(count_path(path)).reset(len(results))


def _candidates(path: Path, damage: list[DamagedPlace]) -> Iterator[tuple[Path, str, Any]]:
    """File, place and content of each record of ``results.json`` and its log. Adds other damage to ``damage``."""
    document = Document(path)
    try:
        document.read()
        for record in document.entries:
            yield path, _name(record), record
    except OtherFile:
        raise
    except (Damage, StoreError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        damage.append(DamagedPlace(path, "", reason))
        for number, record in enumerate(_scan(_read_text(path)), 1):
            yield path, f"result {number} ({_name(record)})", record
    log = Journal(log_path(path), LOG_FORMAT, LOG_VERSION)
    try:
        lines = log.read_new()
    except OtherFile:
        raise
    except StoreError as error:
        damage.append(DamagedPlace(log.path, "", str(error).removeprefix(f"{log.path}: ")))
        return
    if lines is None or (log.id and log.id == document.log):
        return
    damage += [DamagedPlace(log.path, "", reason) for reason in lines.damage]
    for record in lines.entries:
        yield log.path, _name(record), record


def _read_text(path: Path) -> str:
    """The content of a file with escapes for bytes that are not UTF-8; empty if it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "backslashreplace")
    except OSError:
        return ""


def _scan(text: str) -> Iterator[Any]:
    """The JSON objects of a damaged file that start as records do."""
    position = 0
    while match := _RECORD_START.search(text, position):
        position = match.end()
        try:
            record, position = _DECODER.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        yield record


def _validate(record: Any) -> RunResult | str:
    """The result of a record, or the reason why it is not intact."""
    if FIELD in record and not is_intact(record):
        return "its checksum does not match"
    try:
        return RunResult.model_validate({name: record[name] for name in record if name not in ("id", FIELD)})
    except ValidationError as error:
        return first_mistake(error)


def _name(record: Any) -> str:
    return f"run {record.get('id')}, attempt {record.get('attempt')}"


def _check_count(path: Path, count: int) -> Iterator[DamagedPlace]:
    bound = LowerBound(count_path(path))
    try:
        stored = bound.read()
    except (Damage, StoreError) as error:
        reason = str(error).removeprefix(f"{bound.path}: ").removeprefix(f"{bound.path.name}: ")
        yield DamagedPlace(bound.path, "", reason)
        return
    if stored is not None and count < stored:
        yield DamagedPlace(path, "", f"{count} results are intact, but {stored} were stored")
