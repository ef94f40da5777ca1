"""Fit the accuracy of a task, and forecast it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.errors import ConfigError, DamagedFile, FitError
from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import minimise
from flops_fit_core.fitting.laws.surfaces import LawSurface
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.task_accuracy.checks import check_task
from flops_fit_core.fitting.task_accuracy.curves import binomial_variance
from flops_fit_core.fitting.task_accuracy.extrapolation import backtest
from flops_fit_core.fitting.task_accuracy.forecaster import Parts, TaskForecaster, accuracies
from flops_fit_core.fitting.task_accuracy.loss_law import LossFit, chinchilla_loss
from flops_fit_core.fitting.task_accuracy.records import AccuracyForecast, TaskFit
from flops_fit_core.fitting.task_accuracy.scores import TaskScores
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.plugins.checked_json import read_record
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.records import Diagnostic, Interval, Law

MIN_RUNS = 8
QUESTIONS_DOF = 4
"""Degrees of freedom by which the binomial variance of the stated questions counts in the noise."""
_MAX_LN_RATIO = float(np.log(1e4))
"""An optimal N further than this from the sizes is arbitrary."""
LAWS = {"loss": "chinchilla", "two_step": "loss-sigmoid", "direct": "compute-sigmoid"}


@convert_numerical_errors
def fit_task(
    scores: TaskScores,
    *,
    chance: float | None = None,
    ceiling: float = 1.0,
    questions: int | None = None,
    level: float = 0.9,
    draws: int = 1000,
    seed: int = 0,
) -> TaskFit:
    """Fit the accuracy of a task in two steps and directly.

    Args:
        scores: The runs.
        chance: Accuracy of guessing, such as 0.25 with four choices. Holds the floor of the sigmoid near it. None:
            the floor is free.
        ceiling: Accuracy of a perfect model.
        questions: Number of questions of the task, for the noise of accuracy. None: from the residuals alone.
        level: Level of all intervals.
        draws: Bootstrap draws; 0 for no intervals.
        seed: Of the bootstrap.

    Raises FitError for fewer than 8 runs, accuracies that are all equal, or levels outside 0 to 1.
    """
    _validate(scores, chance, ceiling, questions)
    forecaster = TaskForecaster.fit(scores, chance, ceiling)
    noise, dof = _estimate_noise(forecaster, questions)
    errors = backtest(scores, chance, ceiling)
    drawn = forecaster.bootstrap(draws, seed) if draws else {}
    diagnostics = check_task(forecaster, drawn, errors, noise, chance)
    if not len(errors.error):
        message = f"{len(scores)} runs are too few for a backtest, so intervals beyond the runs are too narrow"
        diagnostics.append(Diagnostic(code="task-no-backtest", message=message, severity="note"))
    point = {
        part: Law(name=LAWS[part], parameters={name: float(values[0]) for name, values in law.items()})
        for part, law in forecaster.parts.items()
    }
    return TaskFit(
        task=scores.task,
        via=scores.via,
        loss_law=point["loss"],
        loss_curve=point["two_step"],
        compute_curve=point["direct"],
        main_loss_law=_fit_main_loss(scores, point["loss"]),
        draws={
            part: {name: tuple(values.tolist()) for name, values in law.items()} for part, law in drawn.items()
        },
        chance=chance,
        ceiling=ceiling,
        questions=questions,
        level=level,
        n_runs=len(scores),
        noise=noise,
        noise_dof=dof,
        growth=errors.growth(noise),
        flops_range=_range(scores.flops),
        params_range=_range(scores.params),
        accuracy_range=_range(scores.accuracy),
        flops_per_token=_flops_per_token(scores).knots(),
        diagnostics=tuple(diagnostics),
        seed=seed,
    )


@convert_numerical_errors
def predict_accuracy(
    fit: TaskFit, flops: float | None = None, *, params: float | None = None, tokens: float | None = None
) -> AccuracyForecast:
    """Forecast accuracy at N and D, at N and C, or at the optimum of C by the law of the main loss.

    Raises FitError for another combination, or for numbers that are not positive.
    """
    ln_params, ln_tokens, ln_flops = _locate(fit, flops, params, tokens)
    parts: Parts = {
        part: {name: np.array([value]) for name, value in law.parameters.items()}
        for part, law in (("loss", fit.loss_law), ("two_step", fit.loss_curve), ("direct", fit.compute_curve))
    }
    drawn: Parts = {
        part: {name: np.array(values) for name, values in law.items()} for part, law in fit.draws.items()
    }
    point = [float(values[0, 0]) for values in accuracies(parts, fit.ceiling, ln_params, ln_tokens, ln_flops)]
    loss = _loss(parts, ln_params, ln_tokens)
    mean = (point[0] + point[1]) / 2
    no_draws = np.empty(0)
    law = new_run = two_step = direct = drawn_loss = no_draws
    if drawn:
        two_step, direct = (
            values[:, 0] for values in accuracies(drawn, fit.ceiling, ln_params, ln_tokens, ln_flops)
        )
        drawn_loss = _loss(drawn, ln_params, ln_tokens)
        law, new_run = _spread(fit, mean, np.concatenate([two_step, direct]), float(ln_flops[0]))
    flops = float(np.exp(ln_flops[0])) if flops is None else flops
    accuracy = interval(mean, law, fit.level)
    return AccuracyForecast(
        params=float(np.exp(ln_params[0])) if params is None else params,
        tokens=float(np.exp(ln_tokens[0])) if tokens is None else tokens,
        flops=flops,
        accuracy=accuracy,
        new_run=_include(interval(mean, new_run, fit.level), accuracy),
        two_step=interval(point[0], two_step, fit.level),
        direct=interval(point[1], direct, fit.level),
        loss=interval(float(loss[0]), drawn_loss, fit.level),
        notes=_describe_distance(fit, flops),
    )


def task_intervals(fit: TaskFit) -> dict[str, dict[str, Interval]]:
    """Every parameter of the three laws with its interval: part -> parameter -> interval."""
    laws = {"loss": fit.loss_law, "two_step": fit.loss_curve, "direct": fit.compute_curve}
    return {
        part: {
            name: interval(value, np.array(fit.draws.get(part, {}).get(name, ())), fit.level)
            for name, value in law.parameters.items()
        }
        for part, law in laws.items()
    }


def load_task_fit(path: Path) -> TaskFit:
    """Read a fit written by ``fit --task ... --out``. Raises FitError if it is missing, damaged or no fit."""
    try:
        return read_record(TaskFit, Path(path))
    except DamagedFile as error:
        raise FitError(
            f"{path} is not a fit of a task, or is damaged: {error.reason}; create one with flops-fit fit RUNS "
            "--task COLUMN --out FILE"
        ) from None
    except ConfigError as error:
        raise FitError(str(error)) from None


def _validate(scores: TaskScores, chance: float | None, ceiling: float, questions: int | None) -> None:
    if len(scores) < MIN_RUNS:
        raise FitError(
            f"{len(scores)} runs with {scores.task} and {scores.via} cannot fit the accuracy of a task: train "
            f"{MIN_RUNS} or more, preferably 20"
        )
    if not 0 < ceiling <= 1 or (chance is not None and not 0 <= chance < ceiling):
        raise FitError(
            f"chance {chance} and ceiling {ceiling}: write shares, such as 0.25 and 1, with chance lower"
        )
    if questions is not None and questions < 1:
        raise FitError(f"questions = {questions}: write the number of questions of the task")
    if not (np.isfinite(scores.accuracy).all() and scores.accuracy.min() >= 0 and scores.accuracy.max() <= 1):
        raise FitError(f"{scores.task} must lie between 0 and 1")
    if float(np.ptp(scores.accuracy)) == 0:
        raise FitError(f"{scores.task} is {scores.accuracy[0]:g} in every run: there is nothing to fit")
    for name, values in (("N", scores.params), ("D", scores.tokens), (scores.via, scores.loss)):
        if float(np.ptp(np.log(values))) < 1e-12:
            raise FitError(f"{name} is {values[0]:g} in every run: train runs over a range of N and D")


def _estimate_noise(forecaster: TaskForecaster, questions: int | None) -> tuple[float, float]:
    """Standard deviation of a run, in binomial standard deviations of one answer, and its degrees of freedom.

    The binomial variance of the questions is a prior: runs share questions, so their spread may be smaller.
    """
    residuals = forecaster.residuals()
    dof = float(max(len(residuals) - 5, 1))
    squares = float((residuals**2).sum())
    if questions is None:
        return float(np.sqrt(squares / dof)), dof
    return float(np.sqrt((squares + QUESTIONS_DOF / questions) / (dof + QUESTIONS_DOF))), dof + QUESTIONS_DOF


def _spread(fit: TaskFit, mean: float, draws: Floats, ln_flops: float) -> tuple[Floats, Floats]:
    """Draws of the law and of a new run, with normal errors added if backtests show larger errors."""
    unit = float(np.sqrt(binomial_variance(np.array(mean))))
    distance = max(ln_flops - float(np.log(fit.flops_range[1])), 0.0)
    missing = max((fit.growth * unit) ** 2 * distance - float(draws.var()), 0.0)
    random = np.random.default_rng([fit.seed, 1])
    law = draws + np.sqrt(missing) * random.standard_normal(len(draws))
    new_run = law + fit.noise * unit * random.standard_t(fit.noise_dof, len(draws))
    return np.clip(law, 0, 1), np.clip(new_run, 0, 1)


def _include(outer: Interval, inner: Interval) -> Interval:
    """``outer``, widened to contain ``inner``: their ends come from a finite number of draws."""
    if outer.low is None or outer.high is None or inner.low is None or inner.high is None:
        return outer
    return Interval(value=outer.value, low=min(outer.low, inner.low), high=max(outer.high, inner.high))


def _fit_main_loss(scores: TaskScores, loss_law: Law) -> Law:
    if np.array_equal(scores.main_loss, scores.loss):
        return loss_law
    law = LossFit.fit(scores.params, scores.tokens, scores.main_loss)
    parameters = {name: float(values[0]) for name, values in law.point.items()}
    return Law(name=LAWS["loss"], parameters=parameters)


def _loss(parts: Parts, ln_params: Floats, ln_tokens: Floats) -> Floats:
    columns = {name: values[:, None] for name, values in parts["loss"].items()}
    return chinchilla_loss(columns, ln_params, ln_tokens)[:, 0]


def _locate(
    fit: TaskFit, flops: float | None, params: float | None, tokens: float | None
) -> tuple[Floats, Floats, Floats]:
    """Ln of N, D and C, each of shape (1,)."""
    for name, value in (("flops", flops), ("params", params), ("tokens", tokens)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise FitError(f"{name} = {value}: give a positive number, such as 1e9")
    constraint = FlopsPerToken.from_knots(fit.flops_per_token)
    if params is not None and (tokens is None) != (flops is None):
        ln_params = np.log([params])
        per_token = constraint(ln_params)
        if tokens is not None:
            ln_tokens = np.log([tokens])
            return ln_params, ln_tokens, ln_tokens + per_token
        assert flops is not None
        return ln_params, np.log([flops]) - per_token, np.log([flops])
    if flops is not None and params is None and tokens is None:
        law = {name: np.array([value]) for name, value in fit.main_loss_law.parameters.items()}
        ln_params, ln_tokens, _ = minimise(LawSurface(find_law("chinchilla"), law), constraint, flops)
        low, high = np.log(fit.params_range)
        if not low - _MAX_LN_RATIO < ln_params[0] < high + _MAX_LN_RATIO:
            raise FitError(
                f"these runs do not determine the optimal N for C = {numbers.scientific(flops)}: "
                "add --params N, or name N and D "
                "with --params N --tokens D"
            )
        return ln_params, ln_tokens, np.log([flops])
    raise FitError("an accuracy needs params and tokens, params and flops, or flops")


def _describe_distance(fit: TaskFit, flops: float) -> tuple[str, ...]:
    ratio = flops / fit.flops_range[1]
    if ratio < 10.01:
        return ()
    return (f"C = {numbers.scientific(flops)} is {ratio:.3g} times the largest C of the fitted runs",)


def _flops_per_token(scores: TaskScores) -> FlopsPerToken:
    n = len(scores)
    runs = Runs(
        ids=scores.ids,
        params=scores.params,
        tokens=scores.tokens,
        flops=scores.flops,
        loss=scores.loss,
        budget=np.full(n, np.nan),
        seeds=(None,) * n,
        trunks=scores.trajectories,
        unique=scores.tokens,
        loss_se=np.zeros(n),
        noise=np.ones(n),
    )
    return FlopsPerToken.of(runs)


def _range(values: Iterable[float]) -> tuple[float, float]:
    array = np.asarray(list(values), dtype=float)
    return float(array.min()), float(array.max())
