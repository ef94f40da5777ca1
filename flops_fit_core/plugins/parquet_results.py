"""Reads the folder ``results.parquet`` of the removed store ``parquet``.

The folder has files ``part-000001.parquet`` and so on, with a row per attempt, and ``_log.jsonl``, with newer
attempts that are not in the parts yet. Nothing here writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flops_fit_core.errors import ConfigError, StoreError
from flops_fit_core.records import RunResult

LOG = "_log.jsonl"
FORMAT = b"results 1"
"""Metadata ``flops_fit`` of every part."""


def read_parquet_results(study: Path) -> Iterator[RunResult]:
    """Yield every attempt in a study's ``results.parquet``, runs in the order they were added.

    Raises ConfigError if pyarrow is not installed, StoreError if a file is missing, damaged or not of a parquet
    store.
    """
    folder = study / "results.parquet"
    # The log comes first: a driver of an older version moves lines from the log to the parts, never back.
    count, lines = _read_log(folder / LOG)
    records: dict[tuple[str, int], RunResult] = {}
    for part in _parts(folder, count):
        for run_id, attempt, record in _read_part(part):
            records[run_id, attempt] = _result(record, part, run_id)
    for number, (run_id, attempt, record) in enumerate(lines, 2):
        records[run_id, attempt] = _result(json.dumps(record), f"{folder / LOG}: line {number}", run_id)
    yield from records.values()


def _read_log(path: Path) -> tuple[int, list[Any]]:
    """The number of parts at the time of the first line, and the lines after it."""
    try:
        # A last line without a newline is incomplete: its writer was killed.
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        head = lines[0]
        if (head["format"], head["version"]) != ("flops-fit results", 1):
            raise StoreError(f"{path}: not the log of a parquet store of version 1. Put the right file back")
        return head["parts"], [(run_id, attempt, record) for run_id, attempt, record in lines[1:]]
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}. It has the newest results: put it back") from None
    except (LookupError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged ({error}). Repair it by hand, or put a copy back") from None


def _parts(folder: Path, count: int) -> list[Path]:
    """The parts in order. Raises StoreError if one of the first ``count`` is missing, or one before the last."""
    parts = sorted(folder.glob("part-*.parquet"), key=_number)
    for number in range(1, max(count, *map(_number, parts), 0) + 1):
        if number not in {_number(part) for part in parts}:
            raise StoreError(f"{folder / f'part-{number:06d}.parquet'}: missing. It has results: put it back")
    return parts


def _number(part: Path) -> int:
    digits = part.stem.removeprefix("part-")
    if not digits.isdecimal():
        raise StoreError(f"{part}: not a part of a parquet store. Move it to another folder")
    return int(digits)


def _read_part(path: Path) -> Iterator[tuple[str, int, str]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(f"{path}: reading it needs pyarrow: pip install 'flops-fit[parquet]'") from None
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        if (file.schema_arrow.metadata or {}).get(b"flops_fit") != FORMAT:
            raise StoreError(f"{path}: a Parquet file, but not a part of a parquet store. Put the right file back")
        columns = file.read(columns=["id", "attempt", "record"]).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path}: damaged, or cannot be read ({error}). Put a copy back") from None
    yield from zip(columns["id"], columns["attempt"], columns["record"], strict=True)


def _result(record: str, source: object, run_id: str) -> RunResult:
    try:
        return RunResult.model_validate_json(record)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"])) or "the record"
        raise StoreError(f"{source}: cannot read the result of run {run_id}: {field}: {problem['msg']}") from None
