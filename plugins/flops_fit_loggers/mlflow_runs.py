"""Training runs as runs of MLflow: parameters, metrics by tokens, tags."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from flops_fit_core import Progress, RunResult, RunSpec, SweepPlan
from flops_fit_loggers import values
from flops_fit_loggers.background import one_line

SEND_INTERVAL = 5.0
"""Seconds between two batches of training-curve points."""
MAX_METRICS, MAX_PARAMS_OR_TAGS = 1000, 100
"""MLflow's limits per request."""
MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 6000, 8000
TEMPORARY = {401, 403, 408, 425, 429}
"""HTTP statuses below 500 after which a retry may succeed: permissions may change, and rates may fall."""
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Settings that MLflow's client reads only from the environment. By default it retries for four minutes before an
error, and prints the address of each run."""

logger = logging.getLogger("flops_fit")


class MlflowRuns:
    """Implements :class:`~flops_fit_loggers.background.Runs`. Several runs are open at the same time, so it does
    not use MLflow's global active run.

    Tags ``flops_fit.study``, ``.run`` and ``.attempt`` identify a run: a training run that resumes after an
    interruption continues its MLflow run.
    """

    def __init__(self, folder: Path, *, tracking_uri: str | None, experiment: str | None) -> None:
        self._folder = folder
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._name = experiment
        for name, value in ENVIRONMENT.items():  # never unset: another thread may copy it for workers
            os.environ.setdefault(name, value)
        self._specs: dict[str, RunSpec] = {}
        self._open: dict[tuple[str, int], str] = {}
        """(run id, attempt) -> MLflow's run id."""
        self._points: dict[tuple[str, int], dict[tuple[str, int], Metric]] = {}
        """(run id, attempt) -> (key, step) -> unsent point."""
        self._last_send = time.monotonic()

    def open(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._specs = {run.id: run for run in plan.runs}
        self._study = values.study_token(self._folder)
        self._client = MlflowClient(tracking_uri=self._uri or self._create_database())
        self._experiment = _call(self._experiment_id, self._name or plan.name)

    def progress(self, progress: Progress, timestamp: float) -> None:
        if progress.run not in self._specs:
            return
        points = self._points.setdefault((progress.run, progress.attempt), {})
        for metric in _metrics(values.training(progress), progress.tokens, timestamp):
            points[metric.key, metric.step] = metric
        if time.monotonic() - self._last_send > SEND_INTERVAL:
            self._send_points()

    def finished(self, result: RunResult) -> None:
        end = result.finished.timestamp()
        run = self._run(result.run, result.attempt, end - result.seconds)
        self._send_points()
        metrics = _metrics(values.measured(result), result.tokens, end)
        for tokens, point in values.eval_points(result):
            metrics += _metrics(point, tokens, end)
        self._log(run, metrics, values.texts(result))
        status = "FAILED" if result.status == "failed" else "FINISHED"
        _call(self._client.set_terminated, run, status, round(end * 1000))
        del self._open[result.id, result.attempt]

    def close(self) -> None:
        """Interrupted runs have status ``KILLED`` until they resume."""
        self._send_points()
        for key, run in list(self._open.items()):
            with _warn_if_rejected():
                _call(self._client.set_terminated, run, "KILLED")
            del self._open[key]

    def _send_points(self) -> None:
        for key, points in list(self._points.items()):
            with _warn_if_rejected():
                start = min((point.timestamp for point in points.values()), default=time.time() * 1000) / 1000
                self._log(self._run(self._specs[key[0]], key[1], start), list(points.values()), {})
            del self._points[key]
        self._last_send = time.monotonic()

    def _log(self, run: str, metrics: list[Metric], texts: Mapping[str, str]) -> None:
        tags = [RunTag(key, text[:MAX_TAG_LENGTH]) for key, text in texts.items()]
        for batch in _batches(metrics, MAX_METRICS):
            _call(self._client.log_batch, run, metrics=batch)
        for batch in _batches(tags, MAX_PARAMS_OR_TAGS):
            _call(self._client.log_batch, run, tags=batch)

    def _run(self, spec: RunSpec, attempt: int, start: float) -> str:
        """MLflow's id of the run, which is created if needed. ``start``: start time in Unix seconds."""
        key = spec.id, attempt
        if key not in self._open:
            run = self._find_run(spec, attempt) or self._create_run(spec, attempt, start)
            self._log_config(run, spec, start)
            self._open[key] = run.info.run_id
        return self._open[key]

    def _find_run(self, spec: RunSpec, attempt: int) -> Run | None:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in self._tags(spec, attempt).items())
        runs: list[Run] = _call(self._client.search_runs, [self._experiment], query, max_results=1)
        if not runs:
            return None
        _call(self._client.update_run, runs[0].info.run_id, status="RUNNING")
        return runs[0]

    def _create_run(self, spec: RunSpec, attempt: int, start: float) -> Run:
        name, tags = values.run_name(spec, attempt), self._tags(spec, attempt)
        milliseconds = round(start * 1000)
        run: Run = _call(self._client.create_run, self._experiment, milliseconds, tags=tags, run_name=name)
        return run

    def _log_config(self, run: Run, spec: RunSpec, start: float) -> None:
        """Log the missing part of the configuration: an earlier driver may have died after it created the run. N
        and the budget are also metrics, because MLflow compares parameters as text."""
        missing = {
            key: value for key, value in values.config(spec, self._plan).items() if key not in run.data.params
        }
        params = [Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in missing.items()]
        for batch in _batches(params, MAX_PARAMS_OR_TAGS):
            _call(self._client.log_batch, run.info.run_id, params=batch)
        if "budget" not in run.data.metrics:
            metrics = _metrics({"params": spec.params, "budget": spec.budget}, 0, start)
            _call(self._client.log_batch, run.info.run_id, metrics=metrics)

    def _tags(self, spec: RunSpec, attempt: int) -> dict[str, str]:
        return {
            "flops_fit.study": self._study,
            "flops_fit.run": spec.id,
            "flops_fit.attempt": str(attempt),
        }

    def _create_database(self) -> str:
        """The uri of the study's database, which is created if needed."""
        folder = self._folder / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "mlflow.db"
        if not file.exists():
            _create_database_file(file)
        return f"sqlite:///{file}"

    def _experiment_id(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name) or self._create_experiment(name)
        if experiment.lifecycle_stage == "deleted":
            raise ValueError(f'experiment {name!r} is deleted in MLflow: restore it, or set experiment = "..."')
        experiment_id: str = experiment.experiment_id
        return experiment_id

    def _create_experiment(self, name: str) -> Experiment:
        artifacts = None if self._uri else (self._folder / "mlflow" / "artifacts").as_uri()
        try:
            experiment_id: str = self._client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            if experiment := self._client.get_experiment_by_name(name):  # another driver was faster
                return experiment
            raise
        return self._client.get_experiment(experiment_id)


def _create_database_file(file: Path) -> None:
    """Create the database under a temporary name and link it: MLflow needs seconds to create its tables, and an
    incomplete database stays unusable if another driver opens it or this driver dies."""
    new = file.with_name(f"{uuid4().hex[:8]}.new.db")
    try:
        MlflowClient(tracking_uri=f"sqlite:///{new}")
        with suppress(FileExistsError):  # another driver was faster
            os.link(new, file)
    finally:
        with suppress(OSError):  # Windows cannot delete an open file
            new.unlink()


def _call(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call the server. Raises ValueError if the server would reject every retry."""
    try:
        return method(*arguments, **options)
    except MlflowException as error:
        status = error.get_http_status_code()
        if 400 <= status < 500 and status not in TEMPORARY:
            raise ValueError(str(error)) from error
        raise


@contextmanager
def _warn_if_rejected() -> Iterator[None]:
    """Turn a ValueError into a warning, so that the other runs are still sent."""
    try:
        yield
    except ValueError as error:
        logger.warning("logger mlflow: the server rejects a part of a run: %s", one_line(error))


def _metrics(numbers: Mapping[str, float], tokens: int, timestamp: float) -> list[Metric]:
    return [Metric(key, value, round(timestamp * 1000), tokens) for key, value in numbers.items()]


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))
