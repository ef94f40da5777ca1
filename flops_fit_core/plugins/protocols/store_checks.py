"""Findings about the files of a store: the results of ``StoreSpec.check`` and ``StoreSpec.repair``."""

from __future__ import annotations

from typing import Literal

from flops_fit_core.records import Record


class FileFinding(Record):
    """The state of one file of a study."""

    file: str
    """Path relative to the study's folder."""
    state: Literal["intact", "damaged", "unchecked"]
    text: str = ""
    """The content of an intact file, the place of the damage, or the reason why the file was not checked."""
    advice: str = ""
    """The command to type, or the action to take; empty if nothing is needed."""


class StoreRepair(Record):
    """The outcome of the repair of a store."""

    kept: int
    """Number of intact results in the repaired store."""
    lost: tuple[str, ...] = ()
    """Each result that was found and is not intact, such as ``run 0123456789abcdef, attempt 1``."""
    moved: tuple[str, ...] = ()
    """New names of the damaged files, relative to the study's folder."""
