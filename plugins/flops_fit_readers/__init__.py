"""Readers of logs: W&B, exports of W&B charts, Hugging Face Trainer, TensorBoard, Lightning, JSON lines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flops_fit_core.plugins import Options, ReaderSpec, RunReader, find_run_files, hookimpl
from flops_fit_readers import headers

EVENT_FILES = "*.tfevents.*"
WANDB_FILES = "run-*.wandb"
TRAINER_STATE = "trainer_state.json"
METRICS = "metrics.csv"


def has_wandb_files(path: Path) -> bool:
    """Whether a path is a ``.wandb`` file or a folder with such files."""
    return _is_file(path, ".wandb") or any(find_run_files(path, WANDB_FILES))


def has_chart_export(path: Path) -> bool:
    """Whether a path is a CSV export of a W&B chart, or a folder that directly holds one."""
    return any(map(headers.is_chart, headers.csv_files(path)))


def has_trainer_state(path: Path) -> bool:
    """Whether a folder holds states of the Hugging Face Trainer."""
    return path.name == TRAINER_STATE or any(find_run_files(path, TRAINER_STATE))


def has_lightning_metrics(path: Path) -> bool:
    """Whether a folder holds a ``metrics.csv`` of Lightning's CSVLogger."""
    return any(map(headers.is_lightning, find_run_files(path, METRICS)))


def has_event_files(path: Path) -> bool:
    """Whether a folder holds event files that do not belong to a run of the Trainer or of Lightning."""
    logs = [file.parent for file in find_run_files(path, TRAINER_STATE, METRICS)]
    runs = {*logs, *(folder.parent for folder in logs if folder.name.startswith("checkpoint-"))}
    return any(runs.isdisjoint(file.parents) for file in find_run_files(path, EVENT_FILES))


def has_json_lines(path: Path) -> bool:
    """Whether a folder holds files of JSON lines with logged values."""
    return path.is_dir() and any(map(headers.is_json_log, find_run_files(path, *headers.JSON_LINES)))


def build_wandb(options: Options) -> RunReader:
    """``run-*.wandb``, the files that Weights & Biases writes for offline and online runs."""
    from flops_fit_readers.wandb_files import WandbReader

    return WandbReader()


def build_wandb_export(options: Options) -> RunReader:
    """CSV exports of W&B charts, with a CSV export of the table of runs in the same folder."""
    from flops_fit_readers.wandb_exports import WandbExportReader

    return WandbExportReader()


def build_trainer_state(options: Options) -> RunReader:
    """``trainer_state.json`` of the Hugging Face Trainer, one run per output folder."""
    from flops_fit_readers.trainer_states import TrainerStateReader

    return TrainerStateReader()


def build_tensorboard(options: Options) -> RunReader:
    """Event files of TensorBoard, one run per folder."""
    from flops_fit_readers.event_files import TensorboardReader

    return TensorboardReader()


def build_lightning(options: Options) -> RunReader:
    """``metrics.csv`` and ``hparams.yaml`` of Lightning's CSVLogger, one run per folder."""
    from flops_fit_readers.lightning_metrics import LightningReader

    return LightningReader()


def build_json_lines(options: Options) -> RunReader:
    """Folders with JSON lines of logged values, as of OLMo and Marin, one run per file."""
    from flops_fit_readers.json_logs import JsonLinesReader

    return JsonLinesReader()


def _is_file(path: Path, suffix: str) -> bool:
    return path.suffix == suffix and path.is_file()


@hookimpl
def flops_fit_readers() -> Iterable[ReaderSpec]:
    yield ReaderSpec(
        name="wandb",
        build=build_wandb,
        recognises=has_wandb_files,
        requires=("wandb>=0.31",),
        extra="wandb",
    )
    yield ReaderSpec(name="wandb-export", build=build_wandb_export, recognises=has_chart_export)
    yield ReaderSpec(name="trainer-state", build=build_trainer_state, recognises=has_trainer_state)
    yield ReaderSpec(
        name="tensorboard",
        build=build_tensorboard,
        recognises=has_event_files,
        requires=("tensorboard>=2.17",),
        extra="tensorboard",
    )
    yield ReaderSpec(name="lightning", build=build_lightning, recognises=has_lightning_metrics)
    yield ReaderSpec(name="json-lines", build=build_json_lines, recognises=has_json_lines)
