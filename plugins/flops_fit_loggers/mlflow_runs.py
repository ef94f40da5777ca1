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
from flops_fit_loggers.background import short

SEND_SECONDS = 5.0
"""Points of all training curves are sent together, this often."""
MOST_METRICS, MOST_WORDS = 1000, 100
"""Of one request, by MLflow's limits."""
LONGEST_PARAM, LONGEST_TAG = 6000, 8000
PASSING = {401, 403, 408, 425, 429}
"""HTTP statuses below 500 that may change without us: of who may, and of how much at a time."""
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What its client takes from there only, where unset: it would try for four minutes before it tells that a server
is away, and print where each run is to be seen."""

logger = logging.getLogger("flops_fit")


class MlflowRuns:
    """Implements ``courier.Runs``, without MLflow's global active run: several runs are open at the same time.

    Tags ``flops_fit.study``, ``.run`` and ``.attempt`` identify a run, so that one that goes on after an
    interruption goes on there as well.
    """

    def __init__(self, folder: Path, *, tracking_uri: str | None, experiment: str | None) -> None:
        self._folder = folder
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._name = experiment
        for name, value in ENVIRONMENT.items():  # and never unset: another thread gives it to workers
            os.environ.setdefault(name, value)
        self._specs: dict[str, RunSpec] = {}
        self._open: dict[tuple[str, int], str] = {}
        self._points: dict[tuple[str, int], dict[tuple[str, int], Metric]] = {}
        self._sent = time.monotonic()

    def open(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._specs = {run.id: run for run in plan.runs}
        self._study = values.study_token(self._folder)
        self._client = MlflowClient(tracking_uri=self._uri or self._own_database())
        self._experiment = _asked(self._experiment_id, self._name or plan.name)

    def progress(self, progress: Progress, when: float) -> None:
        if progress.run not in self._specs:
            return
        points = self._points.setdefault((progress.run, progress.attempt), {})
        for metric in _metrics(values.training(progress), progress.tokens, when):
            points[metric.key, metric.step] = metric
        if time.monotonic() - self._sent > SEND_SECONDS:
            self._send_points()

    def finished(self, result: RunResult) -> None:
        when = result.finished.timestamp()
        run = self._run(result.run, result.attempt, when - result.seconds)
        self._send_points()
        metrics = _metrics(values.measured(result), result.tokens, when)
        for tokens, point in values.eval_points(result):
            metrics += _metrics(point, tokens, when)
        self._log(run, metrics, values.remarks(result))
        status = "FAILED" if result.status == "failed" else "FINISHED"
        _asked(self._client.set_terminated, run, status, round(when * 1000))
        del self._open[result.id, result.attempt]

    def close(self) -> None:
        """Runs that were interrupted are ``KILLED`` until they go on."""
        self._send_points()
        for key, run in list(self._open.items()):
            with _reported():
                _asked(self._client.set_terminated, run, "KILLED")
            del self._open[key]

    def _send_points(self) -> None:
        for key, points in list(self._points.items()):
            with _reported():
                since = min((point.timestamp for point in points.values()), default=time.time() * 1000) / 1000
                self._log(self._run(self._specs[key[0]], key[1], since), list(points.values()), {})
            del self._points[key]
        self._sent = time.monotonic()

    def _log(self, run: str, metrics: list[Metric], words: Mapping[str, str]) -> None:
        tags = [RunTag(key, text[:LONGEST_TAG]) for key, text in words.items()]
        for part in _parts(metrics, MOST_METRICS):
            _asked(self._client.log_batch, run, metrics=part)
        for part in _parts(tags, MOST_WORDS):
            _asked(self._client.log_batch, run, tags=part)

    def _run(self, spec: RunSpec, attempt: int, since: float) -> str:
        """The id of its run there: found, or made, as of a time in seconds since 1970."""
        key = spec.id, attempt
        if key not in self._open:
            run = self._found(spec, attempt) or self._made(spec, attempt, since)
            self._describe(run, spec, since)
            self._open[key] = run.info.run_id
        return self._open[key]

    def _found(self, spec: RunSpec, attempt: int) -> Run | None:
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in self._tags(spec, attempt).items())
        there: list[Run] = _asked(self._client.search_runs, [self._experiment], wanted, max_results=1)
        if not there:
            return None
        _asked(self._client.update_run, there[0].info.run_id, status="RUNNING")
        return there[0]

    def _made(self, spec: RunSpec, attempt: int, since: float) -> Run:
        name, tags = values.run_name(spec, attempt), self._tags(spec, attempt)
        start = round(since * 1000)
        run: Run = _asked(self._client.create_run, self._experiment, start, tags=tags, run_name=name)
        return run

    def _describe(self, run: Run, spec: RunSpec, since: float) -> None:
        """What is not there of its configuration: we may have been cut off after it was made. N and the budget are
        metrics, too, because MLflow compares parameters as text."""
        missing = {
            key: value for key, value in values.config(spec, self._plan).items() if key not in run.data.params
        }
        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in missing.items()]
        for part in _parts(params, MOST_WORDS):
            _asked(self._client.log_batch, run.info.run_id, params=part)
        if "budget" not in run.data.metrics:
            metrics = _metrics({"params": spec.params, "budget": spec.budget}, 0, since)
            _asked(self._client.log_batch, run.info.run_id, metrics=metrics)

    def _tags(self, spec: RunSpec, attempt: int) -> dict[str, str]:
        return {
            "flops_fit.study": self._study,
            "flops_fit.run": spec.id,
            "flops_fit.attempt": str(attempt),
        }

    def _own_database(self) -> str:
        place = self._folder / "mlflow"
        place.mkdir(parents=True, exist_ok=True)
        file = place / "mlflow.db"
        if not file.exists():
            _make_database(file)
        return f"sqlite:///{file}"

    def _experiment_id(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name) or self._new_experiment(name)
        if known.lifecycle_stage == "deleted":
            raise ValueError(f'experiment {name!r} was deleted there: restore it, or set experiment = "..."')
        found: str = known.experiment_id
        return found

    def _new_experiment(self, name: str) -> Experiment:
        own = None if self._uri else (self._folder / "mlflow" / "artifacts").as_uri()
        try:
            made: str = self._client.create_experiment(name, artifact_location=own)
        except MlflowException:
            if there := self._client.get_experiment_by_name(name):  # another driver was faster
                return there
            raise
        return self._client.get_experiment(made)


def _make_database(file: Path) -> None:
    """Beside its place, then moved there whole: MLflow takes seconds for it, and one that is half made when
    another driver opens it, or when this one ends, is broken for good."""
    new = file.with_name(f"{uuid4().hex[:8]}.new.db")
    try:
        MlflowClient(tracking_uri=f"sqlite:///{new}")
        with suppress(FileExistsError):  # another driver was faster
            os.link(new, file)
    finally:
        with suppress(OSError):  # Windows keeps what is open
            new.unlink()


def _asked(call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """What the server answers. Raises ValueError where it will never take what it was asked for."""
    try:
        return call(*arguments, **more)
    except MlflowException as error:
        status = error.get_http_status_code()
        if 400 <= status < 500 and status not in PASSING:
            raise ValueError(str(error)) from error
        raise


@contextmanager
def _reported() -> Iterator[None]:
    """What the server will never take of one run keeps nobody else's from it."""
    try:
        yield
    except ValueError as error:
        logger.warning("logger mlflow cannot show a part of a run: %s", short(error))


def _metrics(numbers: Mapping[str, float], tokens: int, when: float) -> list[Metric]:
    return [Metric(key, value, round(when * 1000), tokens) for key, value in numbers.items()]


def _parts(many: list[Any], most: int) -> Iterable[list[Any]]:
    return (many[first : first + most] for first in range(0, len(many), most))
