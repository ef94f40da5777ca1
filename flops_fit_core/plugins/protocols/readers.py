"""The base class of readers, and the run that a reader returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LoggedRun:
    """A training run as its log has it. The engine finds N, D, C and the loss in it, or refuses."""

    id: str
    """Unique among the runs of a source."""
    history: Iterable[Mapping[str, Any]] = ()
    """Logged values by name, in the order of the log; each mapping holds values of one step and the step itself
    (``step``, ``_step``, ``global_step``). Read once, so it may be a generator. A loss that is NaN stays NaN."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings and sizes of the run, also nested. Columns ``config.NAME``."""
    config_files: Sequence[Path] = ()
    """JSON and YAML files with further settings. The engine reads those that exist, within its limits. It executes
    nothing."""
    folder: Path | None = None
    """The folder of the run, where a user may add facts that the log lacks in ``flops_fit.json``."""
    status: str = ""
    """``finished``, or another word for a run that must not be fitted. Empty: unknown."""


class RunReader(ABC):
    """Base class of readers, which read the logs of training runs of other software."""

    @abstractmethod
    def read(self, path: Path) -> Iterable[LoggedRun]:
        """The runs of a folder or file, in a fixed order. Only values that the log has: a reader never computes a
        count of tokens from settings, and never names a training loss like a held-out loss.

        Raises FitError, with the file, for a log that cannot be read. Executes and unpickles nothing, follows no
        links to folders, and writes nothing.
        """
