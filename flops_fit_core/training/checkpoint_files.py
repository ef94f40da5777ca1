"""The checkpoint files of one trajectory. Each file ends with the checksum of its content."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from flops_fit_core.errors import ClaimLost
from flops_fit_core.plugins.checkpoint_claim import CheckpointClaim
from flops_fit_core.plugins.utilities import list_files, make_folder, temporary_path

CHECKSUM_MARK = "flops-fit checksum"
"""A key in the content of a checkpoint that ends with a checksum: a file with the key alone was cut off."""
TAKE_OVER_SECONDS = 10.0
"""The longest wait of a worker for the driver that is taking its job over."""
_LABEL = b"\nflops-fit sha256 "
_FOOTER = len(_LABEL) + 64 + 1
_BLOCK = 1 << 20

logger = logging.getLogger("flops_fit")


class TrajectoryFolder:
    """The checkpoints of one trajectory. The trainer writes them, the driver deletes them.

    checkpoints/<trajectory id>/latest.pt          from which an interrupted run is resumed
    checkpoints/<trajectory id>/step-00001234.pt   the shared stable phase at a step where a run branched off
    checkpoints/<trajectory id>/claim              token of the driver that trains the trajectory

    Args:
        study: The study's folder.
        trajectory: Id of the trajectory.
        token: Token of the driver's claim; None if the store is not fenced. Files are written and deleted only
            while the trajectory belongs to this token.
    """

    def __init__(self, study: Path, trajectory: str, token: str | None = None) -> None:
        self.path = study / "checkpoints" / trajectory
        self.token = token
        self._claim = CheckpointClaim(self.path)

    @property
    def latest(self) -> Path:
        return self.path / "latest.pt"

    @property
    def bytes(self) -> int:
        """Size on disk; 0 for a folder that does not exist. A worker may be writing, a driver deleting."""
        size = 0
        for file in list_files(self.path, "*"):
            with contextlib.suppress(FileNotFoundError):
                if file.is_file() and file not in self._claim.files:
                    size += file.stat().st_size
        return size

    def branch(self, step: int) -> Path:
        return self.path / f"step-{step:08d}.pt"

    def branches(self) -> dict[int, Path]:
        """Step -> file, in the order of the steps."""
        names = ((file.stem.removeprefix("step-"), file) for file in self.path.glob("step-*.pt"))
        return dict(sorted((int(step), file) for step, file in names if step.isdecimal()))

    # ------------------------------------------------------------------ writing

    @contextlib.contextmanager
    def writing(self, file: Path) -> Iterator[BinaryIO]:
        """Open a new checkpoint for writing. It replaces ``file`` atomically, with its checksum, when the block
        ends.

        The stream has ``write`` and ``flush`` only. Raises OSError if the file cannot be written, and ClaimLost if
        another driver has taken the trajectory over; ``file`` is unchanged then.
        """
        with self._replacing(file) as temporary, temporary.open("xb") as stream:
            hashing = _HashingStream(stream)
            yield hashing  # type: ignore[misc]  # the part of a stream that torch.save uses
            _write_footer(stream, hashing.digest)

    def write_with(self, write: Callable[[Path], object], file: Path) -> None:
        """As :meth:`writing`, for a library that creates the file itself: ``write(path)``."""
        with self._replacing(file) as temporary:
            write(temporary)
            with temporary.open("r+b") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                stream.seek(0, os.SEEK_END)
                _write_footer(stream, digest)

    @contextlib.contextmanager
    def _replacing(self, file: Path) -> Iterator[Path]:
        """A path for the new content. :func:`remove_temporary_files` finds it after the process was killed."""
        make_folder(self.path)
        temporary = temporary_path(file)
        try:
            yield temporary
            self._replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)

    def _replace(self, temporary: Path, file: Path) -> None:
        deadline = time.monotonic() + TAKE_OVER_SECONDS
        while self.path.exists():
            with self._claim.locked_for(self.token) as is_owner:
                if is_owner:
                    temporary.replace(file)
                    return
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        logger.warning("checkpoint %s is not written: another driver trains this trajectory now", file)
        raise ClaimLost(f"another driver has taken over the trajectory {self.path.name}")

    # ------------------------------------------------------------------ the driver

    def take(self, holds_claim: Callable[[], bool] = lambda: True) -> bool:
        """Give the trajectory to the driver with this token, and to its workers.

        Args:
            holds_claim: Whether the driver still has its claim in the store.

        Returns whether it has. Raises OSError.
        """
        return self.token is None or self._claim.take(self.token, holds_claim)

    def forget_latest(self) -> int:
        """Delete the latest checkpoint, and temporary files of writers that were killed. Keeps branches.

        Returns the number of bytes freed: 0 if another driver has taken the trajectory over.
        """
        if not self.path.exists():
            return 0
        with self._owned() as is_owner:
            if not is_owner:
                return 0
            bytes_before = self.bytes
            for file in [self.latest, *self.path.glob(".*.pt.*")]:
                file.unlink(missing_ok=True)
            freed = bytes_before - self.bytes
            self._remove_if_empty()
        return freed

    def remove(self) -> int:
        """Delete the folder. Returns the number of bytes freed: 0 if another driver has taken it over."""
        if not self.path.exists():
            return 0
        with self._owned() as is_owner:
            if not is_owner:
                return 0
            freed = self.bytes
            shutil.rmtree(self.path, ignore_errors=True)
            self._remove_empty_parent()
        return freed

    def remove_if_empty(self) -> None:
        """Delete the claim of a folder without checkpoints, unless another driver has taken it over."""
        if self.token is not None and self.path.exists():
            with self._owned() as is_owner:
                if is_owner:
                    self._remove_if_empty()

    @contextlib.contextmanager
    def _owned(self) -> Iterator[bool]:
        with contextlib.ExitStack() as stack:
            try:
                is_owner = stack.enter_context(self._claim.locked_for(self.token, as_driver=True))
            except OSError as error:
                logger.warning("checkpoints in %s are kept: %s", self.path, error)
                is_owner = False
            yield is_owner

    def _remove_if_empty(self) -> None:
        """Remove a folder without checkpoints. A worker that finds no claim does not write."""
        if all(file in self._claim.files for file in self.path.iterdir()):
            for file in self._claim.files:
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
            self._remove_empty_parent()

    def _remove_empty_parent(self) -> None:
        """Remove ``checkpoints/`` after the last trajectory.

        Only with a claim: other drivers create the folder again with :func:`make_folder`. Without one, a trainer
        may be creating it now.
        """
        if self.token is not None:
            with contextlib.suppress(OSError):  # it has other trajectories
                self.path.parent.rmdir()


# ---------------------------------------------------------------------------- checksums


def verify_checkpoint(path: Path) -> str | None:
    """Why a checkpoint file is damaged, in a few words; None if it is intact. Imports no torch.

    A file without a checksum was written by an earlier version, by another program, or is cut off: its zip archive
    is checked instead, which does not find every flipped bit.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                return "it is empty"
            file.seek(max(0, size - _FOOTER))
            footer = file.read(_FOOTER)
            if not (footer.startswith(_LABEL) and footer.endswith(b"\n")):
                return _verify_archive(path)
            file.seek(0)
            digest = _digest_of(file, size - _FOOTER)
    except OSError as error:
        return error.strerror or str(error)
    return None if _footer(digest) == footer else "its content does not match its checksum"


def _verify_archive(path: Path) -> str | None:
    """The checks of the zip archive that torch.save writes: CRC-32 of each entry."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    except Exception as error:  # a damaged archive raises anything, such as OverflowError or zlib.error
        return f"it is not a complete archive of torch ({error})"
    if damaged is not None:
        return f"the entry {damaged} does not match its checksum"
    if any(CHECKSUM_MARK.encode() in content for content in pickles):
        return "its checksum is missing: the end of the file was cut off or changed"
    return None


class _HashingStream:
    """A binary stream that computes the SHA-256 of the bytes written. torch.save never seeks."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def _digest_of(file: BinaryIO, length: int) -> str:
    digest, remaining = hashlib.sha256(), length
    buffer = memoryview(bytearray(_BLOCK))
    while remaining > 0:
        count = file.readinto(buffer[: min(_BLOCK, remaining)])  # type: ignore[attr-defined]
        if not count:
            break
        digest.update(buffer[:count])
        remaining -= count
    return digest.hexdigest()


def _footer(digest: str) -> bytes:
    return _LABEL + digest.encode() + b"\n"


def _write_footer(stream: BinaryIO, digest: str) -> None:
    stream.write(_footer(digest))
    stream.flush()
    os.fsync(stream.fileno())
