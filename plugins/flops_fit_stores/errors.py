"""The errors of the stores in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flops_fit_core import StoreError

START_NEW = "To start with an empty store, move it away or choose another folder with --out"


class Damage(Exception):
    """A file of a store is damaged. The message is the reason, for :func:`damaged_store`."""


class DamagedStore(StoreError):
    """A damaged store, which ``flops-fit store repair`` repairs."""

    reason = ""
    """The damage."""


class OtherFile(StoreError):
    """An intact file of another program, or of a newer version of flops-fit."""


def damaged_store(path: Path, reason: str, intact: int | None = None) -> DamagedStore:
    """The error for a damaged store.

    Args:
        path: The store's main file, in the study's folder.
        reason: The damage.
        intact: Number of results that can be read; None if they were not counted.
    """
    folder, count = path.parent, "" if intact is None else f"; intact results: {intact}"
    error = DamagedStore(
        f"{path}: damaged: {reason}{count}. Nothing was changed. To list the damage: flops-fit store check "
        f"{folder}. To keep every intact result and move the damaged file aside: flops-fit store repair {folder}"
    )
    error.reason = reason
    return error


def other_program(path: Path, format_name: str) -> OtherFile:
    return OtherFile(f"{path}: a file of another program, not {format_name}. {START_NEW}")


def newer_version(path: Path, version: object, supported: int) -> OtherFile:
    return OtherFile(
        f"{path}: written by a newer flops-fit: its version is {version!r}, the latest supported here is "
        f"{supported}: pip install -U flops-fit"
    )


def summary(texts: Sequence[str], most: int = 5) -> str:
    """The first texts, and the number of the others."""
    others = f" and {len(texts) - most} more" if len(texts) > most else ""
    return f"{'; '.join(texts[:most])}{others}"
