"""Decides which reader plugin reads a source, and calls it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from flops_fit_core.errors import FitError, PluginNotFound, UserError
from flops_fit_core.fitting.io.files import RawTable, read_raw
from flops_fit_core.fitting.io.logged_runs import LoggedTable, tabulate_runs
from flops_fit_core.plugins import limits
from flops_fit_core.plugins.protocols import LoggedRun, RunReader
from flops_fit_core.plugins.registry import RegisteredSpec, Registry, installed
from flops_fit_core.plugins.specs import ReaderSpec

logger = logging.getLogger("flops_fit")

_STUDY_FILES = ("experiment.json", "plan.json")
"""Files of a study's folder. It may also hold event files of its loggers."""


@dataclass(frozen=True)
class Source:
    """The cells of a table or of the logs of runs."""

    raw: RawTable
    reader: str = ""
    """Qualified name of the reader; empty for a table."""
    logs: LoggedTable | None = None
    """The table of the logs; None for a table."""


def find_reader(
    path: Path, registry: Registry | None = None, name: str | None = None
) -> RegisteredSpec[ReaderSpec] | None:
    """The reader ``name``, otherwise the only reader that recognises ``path``; None if no reader does.

    Raises FitError if several readers recognise it, and for an unknown ``name``.
    """
    if registry is None:
        registry = installed()
    if name is not None:
        try:
            return registry.find("reader", name)
        except PluginNotFound as error:
            raise FitError(str(error)) from None
    if not path.exists() or all((path / file).is_file() for file in _STUDY_FILES):
        return None
    matches = [offer for offer in registry.offers("reader") if _recognises(offer, path)]
    if len(matches) > 1:
        choices = " or ".join(f"--reader {offer.spec.name}" for offer in matches)
        raise FitError(f"{path} holds logs of {len(matches)} kinds: type {choices}")
    return matches[0] if matches else None


def _recognises(offer: RegisteredSpec[ReaderSpec], path: Path) -> bool:
    try:
        return bool(offer.spec.recognises(path))
    except UserError:
        raise
    except Exception:  # a plugin of another person must not prevent the reading of other sources
        logger.exception("reader %s: recognises", offer.name)
        return False


def read_source(path: Path, registry: Registry | None, name: str | None, columns: Collection[str] = ()) -> Source:
    """Read a table or the logs of runs. ``columns`` are the columns that the user names.

    Raises FitError for a source that cannot be read, and ConfigError if the reader needs a missing package.
    """
    offer = find_reader(path, registry, name)
    if offer is None:
        if path.is_dir():
            raise FitError(describe_unknown_folder(path, registry))
        return Source(read_raw(path))
    spec: ReaderSpec = (registry or installed()).find("reader", offer.name).spec  # checks its requirements
    reader = spec.build(spec.options())
    if not isinstance(reader, RunReader):
        raise FitError(f"reader {offer.name}: build returned {type(reader).__name__}, which is not a RunReader")
    logs = tabulate_runs(path, _read_runs(reader, offer.name, path), columns)
    return Source(logs.raw, offer.name, logs)


def _read_runs(reader: RunReader, name: str, path: Path) -> Iterator[LoggedRun]:
    """The runs of a reader. Raises FitError for another type, an id that occurs twice, and too many runs."""
    ids: set[str] = set()
    for run in reader.read(path):
        if not isinstance(run, LoggedRun):
            raise FitError(f"reader {name}: {type(run).__name__} is not a LoggedRun")
        if run.id in ids:
            raise FitError(f"reader {name}: two runs have the id {run.id!r}")
        ids.add(run.id)
        if len(ids) > limits.READER_RUNS:
            raise FitError(f"{path} has more than {limits.READER_RUNS:,} runs, the limit of a source")
        yield run


def describe_unknown_folder(path: Path, registry: Registry | None = None) -> str:
    """The error message for a folder that no reader recognises."""
    names = ", ".join(sorted(offer.spec.name for offer in (registry or installed()).offers("reader")))
    return (
        f"{path} is neither a study nor a folder with logs that a reader recognises (readers: {names or 'none'}). "
        "Name the folder above the folders of the runs, or write a table with one row per run"
    )
