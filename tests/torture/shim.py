"""Build ``shim.c``, set its faults, and read its log."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OPERATIONS = (
    "open",
    "write",
    "fsync",
    "rename",
    "link",
    "unlink",
    "truncate",
    "allocate",
    "mkdir",
    "rmdir",
    "any",
)
ACTIONS = ("nothing", "kill_before", "kill_after", "torn", "short", "error")
ROLES = ("every", "driver", "worker")
CREATED, TRUNCATED, FOLDER, FAILED = 1, 2, 4, 8
"""Flags of a record."""


class State(ctypes.Structure):
    """``struct state`` of shim.c."""

    _fields_ = [
        ("prefix", ctypes.c_char * 512),
        ("part", ctypes.c_char * 64),
        ("log", ctypes.c_char * 512),
        ("operation", ctypes.c_int32),
        ("action", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("full_disk", ctypes.c_int32),
        ("role", ctypes.c_int32),
        ("with_content", ctypes.c_int32),
        ("armed", ctypes.c_int32),
        ("fired", ctypes.c_int32),
        ("nth", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("clock_offset", ctypes.c_int64),
    ]


@dataclass(frozen=True)
class Fault:
    """A fault at the n-th call of an operation on paths of the study that contain ``part``."""

    operation: str
    action: str
    nth: int
    error: int = errno.EIO
    full_disk: bool = False
    """Every later call that needs disk space fails too, with ENOSPC."""
    role: str = "every"
    part: str = ""

    @property
    def kind(self) -> str:
        """``kill_before``, ``torn``, ``failed fsync``, ``EIO``, ``ENOSPC from there on`` and so on."""
        if self.action != "error":
            return self.action
        if self.operation == "fsync":
            return "failed fsync"
        return errno.errorcode[self.error] + (" from there on" if self.full_disk else "")

    def __str__(self) -> str:
        where = f" on *{self.part}*" if self.part else ""
        return f"{self.kind} at {self.operation} {self.nth}{where} of {self.role}"


class SharedState:
    """The state file of one trial, mapped by this process too."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(bytes(ctypes.sizeof(State)))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), ctypes.sizeof(State))
        self.state = State.from_buffer(self._map)

    def arm(
        self, prefix: Path, fault: Fault | None = None, log: Path | None = None, content: bool = False
    ) -> None:
        """Watch the paths below ``prefix``: inject the fault, and log every call with ``log``."""
        state = self.state
        state.armed = 0
        state.prefix, state.log = os.fsencode(prefix), os.fsencode(log or "")
        state.with_content, state.count, state.fired = content, 0, 0
        state.action = ACTIONS.index(fault.action if fault else "nothing")
        if fault is not None:
            state.part, state.operation = fault.part.encode(), OPERATIONS.index(fault.operation)
            state.error, state.full_disk, state.role = fault.error, fault.full_disk, ROLES.index(fault.role)
            state.nth = fault.nth
        state.armed = 1

    def disarm(self) -> bool:
        """End all faults: the disk has space again. Returns whether the fault was injected."""
        self.state.armed = 0
        self.state.action = 0
        return bool(self.state.fired)

    def shift_clock(self, seconds: float) -> None:
        """Set the offset of the wall clock of all processes of the trial."""
        self.state.clock_offset = int(seconds * 1e9)


@dataclass(frozen=True)
class Record:
    """One logged call. ``offset`` and ``size`` in bytes."""

    operation: str
    pid: int
    flags: int
    path: str
    second: str
    content: bytes
    inode: int
    offset: int
    size: int


_HEAD = struct.Struct("6i3q")


def read_log(file: Path) -> Iterator[Record]:
    """The calls in the order in which they returned."""
    data, position = file.read_bytes() if file.exists() else b"", 0
    while position + _HEAD.size <= len(data):
        operation, pid, flags, path, second, content, inode, offset, size = _HEAD.unpack_from(data, position)
        position += _HEAD.size
        texts = []
        for length in (path, second, content):
            texts.append(data[position : position + length])
            position += length
        yield Record(
            OPERATIONS[operation],
            pid,
            flags,
            os.fsdecode(texts[0]),
            os.fsdecode(texts[1]),
            texts[2],
            inode,
            offset,
            size,
        )


def missing_requirement() -> str | None:
    """A missing requirement of the shim; None if it can be built."""
    if os.uname().sysname != "Linux":
        return "the shim needs Linux"
    return None if compiler() else "no C compiler: apt-get install -y --no-install-recommends gcc libc6-dev"


def compiler() -> str | None:
    return next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)


def build(folder: Path) -> Path:
    """Compile the shim. Returns the library for LD_PRELOAD."""
    source, library = Path(__file__).with_name("shim.c"), folder / "torture_shim.so"
    command = [
        str(compiler()),
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        "-o",
        str(library),
        str(source),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return library


def attach(file: Path, role: str) -> None:
    """Attach this process to a state file. The shim must be preloaded."""
    if ctypes.CDLL(None).shim_attach(os.fsencode(file), ROLES.index(role)):
        raise OSError(f"the shim cannot map {file}")
