"""Loggers: what a run does, shown while it trains. A terminal's lines, TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from flops_fit_core.plugins import Logger, LoggerSpec, Options, hookimpl


class TerminalOptions(Options):
    """Plain lines on standard error, for the logs of batch systems: a run's start, its progress, its end."""

    every: NonNegativeFloat = 60.0
    """Seconds between two lines on the progress of one run; 0 for all that is heard of it."""
    time: bool = True
    """Whether a line begins with date and time."""


class CurveOptions(Options):
    points: PositiveInt = 1000
    """Points of a run's training-loss curve, at most, over all its steps. Held-out evaluations are all shown."""


class TensorboardOptions(CurveOptions):
    """Event files for TensorBoard, one folder a training run, with hyperparameters: ``tensorboard --logdir
    STUDY/tensorboard``."""


class ServerOptions(CurveOptions):
    flush_timeout: NonNegativeFloat = 30.0
    """Seconds to wait at the end of a sweep for what has not been sent. Results that are still unsent are kept in
    the study's folder, and sent when it is next run."""


class WandbOptions(ServerOptions):
    """Weights & Biases: one of its runs for each training run, grouped by study."""

    project: str | None = None
    """Unset: ``WANDB_PROJECT``, or ``flops-fit``."""
    entity: str | None = None
    """User or team; unset: ``WANDB_ENTITY``, or the account's own."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """``offline`` writes into ``STUDY/wandb``, for ``wandb sync``. Unset: what ``WANDB_MODE`` says, or online."""
    tags: tuple[str, ...] = ()
    """Of every run."""


class MlflowOptions(ServerOptions):
    """MLflow: a study is an experiment there, a training run a run with parameters, metrics and tags."""

    tracking_uri: str | None = None
    """Of the server, ``http://...``, or ``sqlite:///file``. Unset: ``MLFLOW_TRACKING_URI``, or the database
    ``STUDY/mlflow/mlflow.db``."""
    experiment: Annotated[str, Field(min_length=1)] | None = None
    """Unset: the study's name."""


def build_terminal(options: TerminalOptions, folder: Path) -> Logger:
    from flops_fit_loggers.terminal import TerminalLogger

    return TerminalLogger(every=options.every, time=options.time)


def build_tensorboard(options: TensorboardOptions, folder: Path) -> Logger:
    from flops_fit_loggers.tensorboard_files import TensorboardLogger

    return TensorboardLogger(folder / "tensorboard", options.points)


def build_wandb(options: WandbOptions, folder: Path) -> Logger:
    """Raises ConfigError where it would be online and nobody has logged in."""
    from flops_fit_loggers.background import BackgroundLogger
    from flops_fit_loggers.wandb_runs import WandbRuns

    runs = WandbRuns(
        folder,
        project=options.project,
        entity=options.entity,
        mode=options.mode,
        tags=options.tags,
        flush_timeout=options.flush_timeout,
    )
    return BackgroundLogger("wandb", runs, folder, points=options.points, flush_timeout=options.flush_timeout)


def build_mlflow(options: MlflowOptions, folder: Path) -> Logger:
    from flops_fit_loggers.background import BackgroundLogger
    from flops_fit_loggers.mlflow_runs import MlflowRuns

    runs = MlflowRuns(folder, tracking_uri=options.tracking_uri, experiment=options.experiment)
    return BackgroundLogger("mlflow", runs, folder, points=options.points, flush_timeout=options.flush_timeout)


@hookimpl
def flops_fit_loggers() -> Iterable[LoggerSpec]:
    yield LoggerSpec(name="terminal", options=TerminalOptions, build=build_terminal)
    yield LoggerSpec(
        name="tensorboard",
        options=TensorboardOptions,
        build=build_tensorboard,
        requires=("tensorboard>=2.17",),
        extra="tensorboard",
    )
    yield LoggerSpec(
        name="wandb", options=WandbOptions, build=build_wandb, requires=("wandb>=0.31",), extra="wandb"
    )
    yield LoggerSpec(
        name="mlflow", options=MlflowOptions, build=build_mlflow, requires=("mlflow>=2.17",), extra="mlflow"
    )
