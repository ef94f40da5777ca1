"""Reads ``run-*.wandb``, the files that W&B writes for offline and online runs."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from flops_fit_core import FitError
from flops_fit_core.plugins import LoggedRun, RunReader, find_run_files

_BLOCK, _HEADER = 32_768, 7
_MAX_RECORD = 100_000_000
"""Bytes of a record, which may consist of many parts."""
_COMPLETE, _FIRST, _LAST = 1, 2, 4


class WandbReader(RunReader):
    """One run per id. Several files of one id are the parts of a resumed run."""

    def read(self, path: Path) -> Iterator[LoggedRun]:
        root = path.parent if path.is_file() else path
        files = [path] if path.is_file() else list(find_run_files(path, "run-*.wandb"))
        by_id: dict[str, list[Path]] = {}
        for file in sorted(files, key=lambda file: file.parent.name):  # its name starts with the time of the start
            by_id.setdefault(file.stem.removeprefix("run-"), []).append(file)
        for run_id, parts in by_id.items():
            yield _read_run(run_id, parts, root)


def _read_run(run_id: str, files: list[Path], root: Path) -> LoggedRun:
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    logged: set[str] = set()
    name, status = "", ""
    for file in files:
        status = "crashed"  # unless the file has the record that W&B writes at the end of a run
        for record in _parsed_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name or name
                config.update(_items(record.run.config.update))
            elif kind == "config":
                config.update(_items(record.config.update))
            elif kind == "history":
                logged.update(map(_name, record.history.item))
            elif kind == "summary":
                summary.update(_items(record.summary.update))
            elif kind == "exit":
                status = "finished" if record.exit.exit_code == 0 else "crashed"
    config.pop("_wandb", None)
    # The summary has the last value of each logged name, its minimum as NAME.min, and facts that were set once.
    facts = {key: value for key, value in summary.items() if logged.isdisjoint((key, key.rpartition(".")[0]))}
    return LoggedRun(
        id=f"{name} ({run_id})" if name else run_id,
        history=_history(files),
        config={**facts, **config},
        folder=files[-1].parent if files[-1].parent != root else None,
        status=status,
    )


def _history(files: list[Path]) -> Iterator[dict[str, Any]]:
    """The logged values, in a second pass: a history may be larger than the memory."""
    for file in files:
        for record in _parsed_records(file):
            if record.WhichOneof("record_type") == "history":
                point = _items(record.history.item)
                if record.history.HasField("step"):
                    point.setdefault("_step", record.history.step.num)
                yield point


def _parsed_records(file: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    for data in _records(file):
        try:
            record = Record.FromString(data)
        except Exception as error:  # google.protobuf has an exception per implementation
            raise FitError(f"{file} is damaged: {error}") from None
        yield record


def _name(item: Any) -> str:
    """The name of a value. A nested name is joined by points."""
    return str(item.key or ".".join(item.nested_key))


def _items(items: Any) -> dict[str, Any]:
    """Names and values of the items of a record."""
    values = {}
    for item in items:
        try:
            values[_name(item)] = json.loads(item.value_json)
        except (ValueError, RecursionError):
            continue  # a value that W&B itself could not write
    return values


def _records(file: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format.

    Blocks of 32 KiB hold parts of records, each after a header of 7 bytes: checksum, length and kind. The last
    part may be incomplete, because the process was killed; the records before it are read. Raises FitError for a
    file in another format, and for a damaged part.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b":W&B":
                raise FitError(f"{file} is no file of W&B: its first bytes are not ':W&B'")
            stream.seek(_HEADER)
            yield from _join_parts(file, _parts(file, stream))
    except OSError as error:
        raise FitError(f"{file}: {error.strerror or error}") from None


def _parts(file: Path, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    offset = _HEADER
    while True:
        rest = _BLOCK - offset % _BLOCK
        if rest < _HEADER:
            stream.seek(rest, 1)
            offset += rest
            continue
        header = stream.read(_HEADER)
        if len(header) < _HEADER:
            return
        checksum, length, kind = struct.unpack("<IHB", header)
        data = stream.read(length)
        if len(data) < length:
            return
        if kind == 0 and length == 0:  # zeros that a file system left after a crash
            return
        if checksum != _checksum(kind, data):
            raise FitError(f"{file} is damaged at byte {offset:,}: the checksum of a record does not match")
        offset += _HEADER + length
        yield kind, data


def _checksum(kind: int, data: bytes) -> int:
    """CRC-32 of the kind and the data. W&B uses zlib's polynomial, unlike LevelDB."""
    return zlib.crc32(data, zlib.crc32(bytes([kind]))) & 0xFFFFFFFF


def _join_parts(file: Path, parts: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    record = bytearray()
    for kind, data in parts:
        if kind in (_COMPLETE, _FIRST):
            record.clear()
        record += data
        if len(record) > _MAX_RECORD:
            raise FitError(f"{file} is damaged: a record has more than {_MAX_RECORD:,} bytes")
        if kind in (_COMPLETE, _LAST):
            yield bytes(record)
            record.clear()
