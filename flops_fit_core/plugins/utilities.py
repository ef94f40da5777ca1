"""Helpers that plugins share."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel

from flops_fit_core.plugins.terminal_text import escape_controls as escape_controls
from flops_fit_core.records import PluginChoice
from flops_fit_core.records import content_hash as content_hash

# ---------------------------------------------------------------------------- files


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace a file atomically: a reader sees either the old or the new content, never a part.

    Args:
        path: File to replace. Its folder must exist.
        content: Text is written as UTF-8.
        durable: See :func:`replacing`.

    Raises OSError, and leaves the old file as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path, durable=durable) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a new file for writing. It replaces ``path`` atomically when the block ends, unless the block raises.

    The file has the permissions of a new file under the umask, so a group can read a study if the umask allows it.

    Args:
        path: File to replace. Its folder must exist. The permissions of an existing file are not kept.
        durable: Whether to sync the content before the file is replaced, and its folder afterwards. False is
            faster, but a power failure may leave an empty or the old file.

    Raises OSError, and leaves the old file as it was. A killed process may leave a hidden file ``.NAME.xxxxxxxx``.
    """
    temporary = temporary_path(path)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # write() names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def temporary_path(path: Path) -> Path:
    """A new name in the same folder, by which a later process finds the file of a killed process."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def make_folder(path: Path) -> None:
    """Create a folder and its parents, while other processes may remove empty parents. Raises OSError."""
    for _ in range(20):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.mkdir(parents=True, exist_ok=True)
            return
    path.mkdir(parents=True, exist_ok=True)


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Sorted matches of ``folder.glob(pattern)``, which raises if another process removes a folder meanwhile."""
    for _ in range(20):
        with contextlib.suppress(FileNotFoundError):
            return sorted(folder.glob(pattern))
    return sorted(folder.glob(pattern))


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure. Windows cannot sync a folder; some network file systems refuse to."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def open_log(path: Path) -> BinaryIO:
    """Open a log to append to it. It is created if it does not exist; its folder must exist.

    Raises OSError if the path is a symbolic link: in a folder from another user, it may lead to any file of yours.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "ab")


def read_log_tail(path: Path, max_bytes: int, start: int = 0) -> str:
    """The last complete lines of a log that may still be written, at most ``max_bytes`` in total.

    If the last line is longer, its start is cut off. Bytes that are not UTF-8 become U+FFFD.

    Args:
        path: A file. It may be missing.
        max_bytes: Maximum number of bytes to read.
        start: First byte to read, such as the start of this attempt's log.

    Returns an empty string for a file that cannot be read.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        first = file.seek(0, os.SEEK_END) - max_bytes
        # Read one byte more: if a line begins at ``first``, the newline before it is read and the line is
        # complete.
        file.seek(max(start, first - 1))
        data = file.read()
        if first > start:
            _, _, lines = data.partition(b"\n")
            data = lines if lines.strip() else data[1:]
        return data.decode(errors="replace")
    return ""


# ---------------------------------------------------------------------------- results and fits


def bits_per_byte(loss: float, bytes_per_token: float | None) -> float | None:
    """A loss in nats per token as bits per byte of text. None if the dataset has no bytes per token."""
    return loss / math.log(2) / bytes_per_token if bytes_per_token else None


def fit_header(
    fitter: object,
    name: str,
    *,
    flops: Iterable[float],
    params: Iterable[float],
    draws: Mapping[str, Iterable[float]] | None = None,
) -> dict[str, Any]:
    """The fields of a LawFit that are the same for all fitters: ``LawFit(**fit_header(...), law=..., ...)``.

    Args:
        fitter: A dataclass or an Options table. Values that differ from their defaults become the options. The fit
            takes ``level`` and ``seed`` from it; the defaults are 0.9 and 0.
        name: Qualified name of the fitter, such as ``my-plugin/my-law``.
        flops: C of the fitted runs.
        params: N of the runs that define the range of trained sizes.
        draws: Bootstrap draws by parameter of the law. A parameter without draws is left out.

    Returns ``fitter``, ``level``, ``seed``, ``flops_range``, ``params_range`` and ``draws``.
    """
    all_flops, all_params = [float(value) for value in flops], [float(value) for value in params]
    values = {key: tuple(float(value) for value in column) for key, column in (draws or {}).items()}
    return {
        "fitter": PluginChoice(name=name, options=_changed_options(fitter)),
        "level": getattr(fitter, "level", 0.9),
        "seed": getattr(fitter, "seed", 0),
        "flops_range": (min(all_flops), max(all_flops)),
        "params_range": (min(all_params), max(all_params)),
        "draws": {key: column for key, column in values.items() if column},
    }


def _changed_options(fitter: object) -> dict[str, Any]:
    if isinstance(fitter, BaseModel):
        return fitter.model_dump(mode="json", exclude_defaults=True)
    if not dataclasses.is_dataclass(fitter):
        return {}
    options = {
        field.name: getattr(fitter, field.name)
        for field in dataclasses.fields(fitter)
        if field.name != "name" and field.default is not dataclasses.MISSING
    }
    changed = {key: value for key, value in options.items() if value != getattr(type(fitter), key)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}
