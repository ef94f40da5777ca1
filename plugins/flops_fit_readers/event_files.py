"""Reads event files of TensorBoard: one run per folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flops_fit_core import FitError
from flops_fit_core.plugins import LoggedRun, RunReader, find_run_files
from flops_fit_readers.headers import settings_files

_PARTS = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")
"""Folders of one run, for training and held-out data. Their names become a part of the names of values."""
_MAX_BYTES = 256_000_000


class TensorboardReader(RunReader):
    """Scalars and hyperparameters. Files of one folder continue each other."""

    def read(self, path: Path) -> Iterator[LoggedRun]:
        folders: dict[Path, list[Path]] = {}
        for file in find_run_files(path, "*.tfevents.*"):
            is_part = file.parent.name.lower() in _PARTS and file.parent != path
            folders.setdefault(file.parent.parent if is_part else file.parent, []).append(file)
        for folder, files in folders.items():
            config: dict[str, Any] = {}
            history: list[dict[str, Any]] = []
            for file in files:
                part = "" if file.parent == folder else f"{file.parent.name}/"
                _read_events(file, part, history, config)
            yield LoggedRun(
                id=folder.name if folder == path else folder.relative_to(path).as_posix(),
                history=history,
                config=config,
                config_files=settings_files(folder),
                folder=folder,
            )


def _read_events(file: Path, part: str, history: list[dict[str, Any]], config: dict[str, Any]) -> None:
    """Add the scalars of a file to the history, and its hyperparameters to the settings."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    if file.stat().st_size > _MAX_BYTES:
        raise FitError(f"{file} has more than {_MAX_BYTES:,} bytes, the limit of an event file")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns about an incomplete last record
    try:
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                plugin = value.metadata.plugin_data
                if plugin.plugin_name == "hparams":
                    config.update(_hyperparameters(plugin.content))
                elif value.HasField("tensor") and value.tensor.dtype in (1, 2):  # float32, float64
                    array = tensor_util.make_ndarray(value.tensor)
                    if array.size == 1:
                        history.append({"step": event.step, f"{part}{value.tag}": float(array.item())})
    except Exception as error:  # the errors of a damaged file depend on the version of TensorBoard
        raise FitError(f"{file} is damaged: {error}") from None


def _hyperparameters(content: bytes) -> dict[str, Any]:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    start = HParamsPluginData.FromString(content).session_start_info
    kinds = ("number_value", "string_value", "bool_value")
    return {
        name: getattr(value, kind)
        for name, value in start.hparams.items()
        for kind in kinds
        if value.WhichOneof("kind") == kind
    }
