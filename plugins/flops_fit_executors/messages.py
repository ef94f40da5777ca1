"""What a driver and its worker processes say to each other: a kind, a length, that many bytes."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import BinaryIO

from flops_fit_core import Progress, RunResult

_HEADER = struct.Struct("!BQ")


class Kind(IntEnum):
    """From the driver: RUNNER (the pickled ``context.runner``) first, then JOBs, one at a time, each after READY
    or ENDED; STOP at any time. From the worker: READY once it has imported everything, then PROGRESS and RESULT of
    its job, and ENDED with the error that ended the job, or with nothing. GONE is never sent: it stands for the
    end of the stream."""

    RUNNER = 1
    JOB = 2
    STOP = 3
    READY = 4
    PROGRESS = 5
    RESULT = 6
    ENDED = 7
    GONE = 8


def write(stream: BinaryIO, kind: Kind, payload: bytes = b"") -> None:
    """Send one message. Raises OSError or ValueError where nobody reads any more."""
    stream.write(_HEADER.pack(kind, len(payload)))
    stream.write(payload)
    stream.flush()


def read(stream: BinaryIO) -> tuple[Kind, bytes]:
    """The next message, waiting for it; GONE at the end, also where that cuts a message in half."""
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
