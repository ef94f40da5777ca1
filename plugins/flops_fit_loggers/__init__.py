"""Loggers: ``terminal`` (lines on standard error), ``tensorboard``, ``wandb`` and ``mlflow``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from flops_fit_core.plugins import Logger, LoggerSpec, Options, RunsCode, hookimpl


class TerminalOptions(Options):
    """Plain lines on standard error, for logs of batch systems: start, progress and end of each run."""

    every: NonNegativeFloat = 60.0
    """Seconds between two progress lines of a run. 0: every progress event."""
    time: bool = True
    """Start each line with date and time."""


class CurveOptions(Options):
    points: PositiveInt = 1000
    """Maximum number of points of a run's training-loss curve. All held-out evaluations are shown."""


class TensorboardOptions(CurveOptions):
    """Event files for TensorBoard with hyperparameters, one folder per training run. To view them: ``tensorboard
    --logdir STUDY/tensorboard``."""


class ServerOptions(CurveOptions):
    flush_timeout: NonNegativeFloat = 30.0
    """Seconds to wait at the end of a sweep until all results are sent. Unsent results stay in the study's folder,
    and the next ``flops-fit run`` sends them."""


class WandbOptions(ServerOptions):
    """Weights & Biases: one run per training run, grouped by study."""

    project: str | None = None
    """Project. Unset: ``WANDB_PROJECT``, or else ``flops-fit``."""
    entity: str | None = None
    """User or team. Unset: ``WANDB_ENTITY``, or else the account's default."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """``offline`` writes to ``STUDY/wandb``, for ``wandb sync``. Unset: ``WANDB_MODE``, or else ``online``."""
    tags: tuple[str, ...] = ()
    """Tags of every run."""


class MlflowOptions(ServerOptions):
    """MLflow: one experiment per study, one run per training run, with parameters, metrics and tags."""

    tracking_uri: Annotated[str | None, RunsCode()] = None
    """Address of the server, ``http://...``, or of a database, ``sqlite:///file``. Unset: ``MLFLOW_TRACKING_URI``,
    or else the database ``STUDY/mlflow/mlflow.db``."""
    experiment: Annotated[str, Field(min_length=1)] | None = None
    """Name of the experiment. Unset: the study's name."""


def build_terminal(options: TerminalOptions, folder: Path) -> Logger:
    from flops_fit_loggers.terminal import TerminalLogger

    return TerminalLogger(every=options.every, time=options.time)


def build_tensorboard(options: TensorboardOptions, folder: Path) -> Logger:
    from flops_fit_loggers.tensorboard_files import TensorboardLogger

    return TensorboardLogger(folder / "tensorboard", options.points)


def build_wandb(options: WandbOptions, folder: Path) -> Logger:
    """Raises ConfigError if the mode is online and you are not logged in."""
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
