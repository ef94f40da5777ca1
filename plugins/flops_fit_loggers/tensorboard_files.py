"""TensorBoard's event files: one folder a training run, on the axis of tokens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, create_summary_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from flops_fit_core import Progress, RunResult, RunSpec, SweepPlan
from flops_fit_core.plugins import Logger
from flops_fit_loggers import values


class TensorboardLogger(Logger):
    """Writes ``folder/<run name>/events.out.tfevents...``; a point's step is its tokens.

    No run declares an ``Experiment`` of the hparams plugin: where none does, TensorBoard takes the hyperparameters
    and metrics of all runs together, and otherwise those of one.
    """

    def __init__(self, folder: Path, points: int) -> None:
        self._folder = folder
        self._thinning = values.Thinning(points)
        self._plan: SweepPlan | None = None
        self._runs: dict[str, RunSpec] = {}
        self._writers: dict[str, SummaryWriter] = {}

    def started(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._runs = {run.id: run for run in plan.runs}

    def progress(self, progress: Progress) -> None:
        run = self._runs.get(progress.run)
        if run is None or not self._thinning.wants(progress):
            return
        writer = self._writer(run, progress.attempt, progress.tokens)
        for key, value in values.training(progress).items():
            writer.add_scalar(key, value, progress.tokens)

    def finished(self, result: RunResult) -> None:
        self._thinning.forget(result)
        writer = self._writer(result.run, result.attempt, None)
        for tokens, point in values.eval_points(result):
            for key, value in point.items():
                writer.add_scalar(key, value, tokens)
        for key, value in values.measured(result).items():
            writer.add_scalar(key, value, result.tokens)
        for key, text in values.remarks(result).items():
            writer.add_text(key, f"```\n{text}\n```" if key == "traceback" else text, result.tokens)
        writer.file_writer.add_summary(_session_end(result))
        self._writers.pop(values.run_name(result.run, result.attempt)).close()

    def close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def _writer(self, run: RunSpec, attempt: int, tokens: int | None) -> SummaryWriter:
        """``tokens``: where the run goes on. What an earlier driver wrote of later ones is hidden."""
        name = values.run_name(run, attempt)
        if name not in self._writers:
            writer = SummaryWriter(str(self._folder / name), purge_step=tokens)
            if self._plan is not None:
                writer.file_writer.add_summary(hparams(values.config(run, self._plan), {})[1])
            self._writers[name] = writer
        return self._writers[name]


def _session_end(result: RunResult) -> Any:
    """What torch's own ``hparams`` gives as the third, with the status that the run really has."""
    name = "STATUS_FAILURE" if result.status == "failed" else "STATUS_SUCCESS"
    end = SessionEndInfo(status=Status.Value(name), end_time_secs=time.time())
    metadata = create_summary_metadata(HParamsPluginData(session_end_info=end))
    return Summary(value=[Summary.Value(tag=SESSION_END_INFO_TAG, metadata=metadata)])
