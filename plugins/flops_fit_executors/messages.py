"""Messages between a driver and its worker processes: a kind, a length and the payload."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import BinaryIO

from flops_fit_core import Progress, RunResult

_HEADER = struct.Struct("!BQ")


class Kind(IntEnum):
    """Kind of a message.

    The driver sends RUNNER (the pickled ``context.runner``) first, then one JOB after each READY or ENDED, and
    STOP at any time. The worker sends READY once everything is imported, then PROGRESS and RESULT of its job, then
    ENDED with the error that ended the job or an empty payload. GONE is never sent: it marks the end of the
    stream."""

    RUNNER = 1
    JOB = 2
    STOP = 3
    READY = 4
    PROGRESS = 5
    RESULT = 6
    ENDED = 7
    GONE = 8


def write(stream: BinaryIO, kind: Kind, payload: bytes = b"") -> None:
    """Send one message. Raises OSError or ValueError if the stream is closed at the other end."""
    stream.write(_HEADER.pack(kind, len(payload)))
    stream.write(payload)
    stream.flush()


def read(stream: BinaryIO) -> tuple[Kind, bytes]:
    """Wait for the next message. Returns GONE at the end of the stream, even in the middle of a message."""
    header = stream.read(_HEADER.size)
    if len(header) == _HEADER.size:
        kind, length = _HEADER.unpack(header)
        payload = stream.read(length)
        if len(payload) == length:
            return Kind(kind), payload
    return Kind.GONE, b""


def write_record(stream: BinaryIO, record: Progress | RunResult) -> None:
    kind = Kind.RESULT if isinstance(record, RunResult) else Kind.PROGRESS
    write(stream, kind, record.model_dump_json().encode())


def read_record(kind: Kind, payload: bytes) -> Progress | RunResult:
    return (RunResult if kind is Kind.RESULT else Progress).model_validate_json(payload)
