"""``fit --task`` and ``predict --task``: the accuracy of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flops_fit_core.cli import laws
from flops_fit_core.cli.printing import print_json, print_notes, print_table, print_text
from flops_fit_core.errors import ConfigError, FitError
from flops_fit_core.plugins.registry import Registry

if TYPE_CHECKING:
    from flops_fit_core.fitting import AccuracyForecast, ScoreTable, TaskFit
    from flops_fit_core.report.page.tasks import TaskReport

TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task", help="Fit the accuracy in this column, or in this metric of a study's runs.", metavar="COLUMN"
    ),
]
ViaOption = Annotated[
    str | None,
    typer.Option(
        "--via",
        help="Loss of step 1 for --task: a column or metric. Unset, the task's bits per byte, or the loss.",
        metavar="COLUMN",
    ),
]
ChanceOption = Annotated[
    float | None,
    typer.Option("--chance", help="Accuracy of guessing for --task, such as 0.25 with four choices.", metavar="P"),
]
QuestionsOption = Annotated[
    int | None,
    typer.Option("--questions", help="Number of questions of the task, for its noise.", metavar="COUNT"),
]


@dataclass(frozen=True)
class TaskRequest:
    """The options of a command line about a task."""

    task: str | None = None
    via: str | None = None
    chance: float | None = None
    questions: int | None = None

    def is_set(self) -> bool:
        """Whether a task is named. Raises ConfigError for the other options without a task."""
        options = {"--via": self.via, "--chance": self.chance, "--questions": self.questions}
        names = [name for name, value in options.items() if value is not None]
        if self.task is None and names:
            raise ConfigError(f"{', '.join(names)}: add --task COLUMN, the column of accuracies")
        return self.task is not None

    def check(self, request: laws.LawRequest, others: Sequence[str] = ()) -> bool:
        """Whether a task is asked for. Raises ConfigError for options that cannot be combined."""
        if not self.is_set():
            return False
        refused = [*others]
        refused += ["--fitter"] if request.fitter is not None else []
        refused += ["--set"] if request.options else []
        refused += ["--eval-set"] if request.eval_set is not None else []
        if refused:
            raise ConfigError(
                f"{', '.join(refused)} cannot be combined with --task; --via names the loss of step 1"
            )
        return True


def is_task_fit(path: Path) -> bool:
    """Whether a JSON file is a fit of a task."""
    return path.is_file() and path.suffix.lower() == ".json" and b'"compute_curve"' in path.read_bytes()


def fit_and_print(
    request: laws.LawRequest, task: TaskRequest, registry: Registry, out: Path | None, json: bool
) -> None:
    """Fit a task, save it, and print its checks, its laws and forecasts."""
    from flops_fit_core.fitting import task_intervals, write_fit
    from flops_fit_core.report import describe_task_fit

    fit = _fit(request, task, registry)
    if out is not None:
        write_fit(fit, out)
    if json:
        summary = fit.model_dump(mode="json", exclude={"draws"})
        parameters = {
            part: {name: estimate.model_dump() for name, estimate in law.items()}
            for part, law in task_intervals(fit).items()
        }
        print_json({**summary, "is_forecastable": fit.is_forecastable, "parameters": parameters})
        return
    print_notes(fit.diagnostics)
    for line in describe_task_fit(fit):
        print_text(line)
    budgets = [factor * fit.flops_range[1] for factor in (1, 10, 100)]
    try:
        forecasts = _forecasts(fit, budgets, None, None)
    except FitError:
        print_text("These runs do not determine the optimal N and D; here N grows as the square root of C:")
        largest = fit.params_range[1]
        forecasts = [
            forecast
            for factor, budget in zip((1, 10, 100), budgets, strict=True)
            for forecast in _forecasts(fit, [budget], largest * factor**0.5, None)
        ]
    _print_forecasts(fit, forecasts)


def predict_and_print(
    request: laws.LawRequest,
    task: TaskRequest,
    registry: Registry,
    flops: Sequence[float],
    params: float | None,
    tokens: float | None,
    json: bool,
) -> None:
    """Forecast accuracy for budgets, or for N and D."""
    fit = _load_or_fit(request, task, registry)
    forecasts = _forecasts(fit, flops, params, tokens)
    if json:
        shown = [forecast.model_dump(mode="json") for forecast in forecasts]
        print_json(shown[0] if len(shown) == 1 else shown)
        return
    print_notes([item for item in fit.diagnostics if item.severity == "warning" or item.code == "task-columns"])
    _print_forecasts(fit, forecasts)


def report_tasks(request: laws.LawRequest, task: TaskRequest, registry: Registry) -> tuple[TaskReport, ...]:
    """The task of a table or of a saved fit of a task, for a report. Raises ConfigError and FitError."""
    from flops_fit_core.report.page.tasks import describe_task

    if is_task_fit(request.source):
        return (describe_task(_load_or_fit(request, task, registry)),)
    if not task.is_set():
        return ()
    if request.source.is_file() and laws.is_fit(request.source):
        raise ConfigError(f"--task {task.task}: {request.source} is a saved fit without its runs; name the table")
    if not request.is_table(registry):
        raise ConfigError(
            f"--task {task.task}: the report of a study shows all tasks of its runs. For other options, type "
            f"flops-fit fit {request.source} --task {task.task} --out task.json, then flops-fit report task.json"
        )
    without_law = replace(request, fitter=None, options=(), law=None)
    scores = _read_scores(without_law, task, registry)[0].scores
    return (describe_task(_fit(without_law, task, registry), scores),)


def _load_or_fit(request: laws.LawRequest, task: TaskRequest, registry: Registry) -> TaskFit:
    from flops_fit_core.fitting import load_task_fit

    if not is_task_fit(request.source):
        return _fit(request, task, registry)
    fit = load_task_fit(request.source)
    options = {"--via": task.via, "--chance": task.chance, "--questions": task.questions}
    names = [name for name, value in options.items() if value is not None] + request.table_options()
    if names or task.task not in (None, fit.task):
        raise ConfigError(
            f"{request.source} is a saved fit of {fit.task} without its runs and cannot be fitted again: leave "
            f"out {', '.join(names) or '--task'}, or name the study or the table of runs"
        )
    return fit


def _fit(request: laws.LawRequest, task: TaskRequest, registry: Registry) -> TaskFit:
    from flops_fit_core.fitting import fit_task

    scored, conventions = _read_scores(request, task, registry)
    try:
        fit = fit_task(scored.scores, chance=task.chance, questions=task.questions)
    except FitError as error:
        causes = [item.message for item in scored.diagnostics if item.code in ("columns", "task-columns")]
        raise FitError("\n".join([str(error), *causes])) from None
    return fit.model_copy(
        update={
            **conventions,
            "excluded": scored.excluded,
            "diagnostics": (*scored.diagnostics, *fit.diagnostics),
        }
    )


def _read_scores(
    request: laws.LawRequest, task: TaskRequest, registry: Registry
) -> tuple[ScoreTable, dict[str, str]]:
    """The scores, and how their N, C and D are counted."""
    from flops_fit_core.fitting import scores_of_results, scores_of_table

    assert task.task is not None
    if request.is_table(registry):
        columns, filters = request.column_names(), request.row_filters()
        scored = scores_of_table(
            request.source, task.task, task.via, columns, filters, registry=registry, **request.read_options()
        )
        return scored, {}
    study = laws.open_request_study(request, registry)
    plan = study.plan
    names = {"params_name": plan.params_name, "flops_name": plan.flops_name, "unit": plan.unit}
    return scores_of_results(study.results, task.task, task.via), names


def _forecasts(
    fit: TaskFit, flops: Sequence[float], params: float | None, tokens: float | None
) -> list[AccuracyForecast]:
    from flops_fit_core.fitting import predict_accuracy

    if tokens is not None and params is not None and not flops:
        return [predict_accuracy(fit, params=params, tokens=tokens)]
    if tokens is not None or not flops:
        raise ConfigError(
            "an accuracy is forecast for --params N --tokens D, or for --flops C, with or without --params N"
        )
    return [predict_accuracy(fit, budget, params=params) for budget in flops]


def _print_forecasts(fit: TaskFit, forecasts: Sequence[AccuracyForecast]) -> None:
    from flops_fit_core.report import accuracy_table

    print_table(accuracy_table(fit, forecasts))
    for note in dict.fromkeys(note for forecast in forecasts for note in forecast.notes):
        print_text(f"! {note}")
