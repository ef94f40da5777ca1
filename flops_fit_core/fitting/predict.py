"""Work with a fit: make it from a table, save and load it, predict from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.errors import ConfigError, DamagedFile, FitError
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.grid import check_grid
from flops_fit_core.fitting.io.tables import RunTable
from flops_fit_core.fitting.laws.optima import optimum
from flops_fit_core.fitting.laws.surfaces import drawn_surface, has_surface, point_surface
from flops_fit_core.fitting.new_run import covers_new_run, new_run_interval
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.task_accuracy.records import TaskFit
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.plugins.checked_json import read_record, write_checked
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.records import Diagnostic, Interval, LawFit, Record


def fit_table(fitter: Fitter, table: RunTable) -> LawFit:
    """Fit the usable rows of a table; the fit also carries the table's diagnostics and excluded rows."""
    if not table.observations:
        raise FitError(f"no row can be fitted. {table.summary}")
    try:
        fit = check_grid(fitter.fit(table.observations), fitter, table.observations)
    except FitError as error:
        codes = ("columns", "histories", "groups", "grid", "odd-units")
        causes = [
            diagnostic.message
            for diagnostic in table.diagnostics
            if diagnostic.severity == "warning" or diagnostic.code in codes
        ]
        raise FitError("\n".join([str(error), *causes])) from None
    return fit.model_copy(
        update={
            "excluded": {**table.excluded, **fit.excluded},
            "diagnostics": (*table.diagnostics, *fit.diagnostics),
        }
    )


def write_fit(fit: LawFit | TaskFit, path: Path) -> None:
    """Write a fit with its draws as JSON, with a checksum. Raises FitError, and leaves an old file as it was."""
    try:
        write_checked(Path(path), fit)
    except OSError as error:
        raise FitError(f"{path}: {error.strerror or error}") from None


def load_fit(path: Path) -> LawFit:
    """Read a fit written by :func:`write_fit`. Raises FitError if the file is missing, damaged or not a fit."""
    path = Path(path)
    if not path.exists():
        raise FitError(f"{path}: no such file; create it with flops-fit fit ... --out {path}")
    try:
        fit = read_record(LawFit, path)
    except DamagedFile as error:
        raise FitError(
            f"{path} is not a fit, or is damaged: {error.reason}; create one with flops-fit fit ... --out"
        ) from None
    except ConfigError as error:
        raise FitError(str(error)) from None
    if has_surface(fit):
        try:
            inputs = dict.fromkeys(_further_inputs(fit), 1.0)
            point_surface(fit, inputs)
            drawn_surface(fit, inputs)
        except FitError as error:
            raise FitError(f"{path} is not a fit: {error}") from None
    return fit


def summary(fit: LawFit) -> dict[str, Any]:
    """The fit as plain data without its draws; every parameter with its interval under ``parameters``."""
    excluded: Any = {"draws": True, "flops_per_token_modes": True, "flops_per_token_draws": True}
    data = fit.model_dump(mode="json", exclude={**excluded, "members": {"__all__": {"draws"}}})
    data["parameters"] = {name: estimate.model_dump() for name, estimate in parameter_intervals(fit).items()}
    return data


def parameter_intervals(fit: LawFit) -> dict[str, Interval]:
    """Every parameter of the law with its interval at the fit's level."""
    return {
        name: interval(value, np.array(fit.draws.get(name, ())), fit.level)
        for name, value in fit.law.parameters.items()
    }


@convert_numerical_errors
def predict_loss(
    fit: LawFit,
    params: float,
    tokens: float,
    unique_tokens: float | None = None,
    inputs: Mapping[str, float] | None = None,
    *,
    new_run: bool = False,
) -> Interval:
    """Held-out loss of a model of N parameters after D tokens, with the interval of the law.

    With ``new_run``, the interval of one further run. ``inputs`` has the values of a law's further inputs. Raises
    FitError for a law of the optimum only (isoflop, envelope), and for a fit without an estimate of the error of a
    run.
    """
    extra = {**(inputs or {}), **({} if unique_tokens is None else {"unique_tokens": unique_tokens})}
    x = np.log([[params]]), np.log([[tokens]])
    point, drawn = point_surface(fit, extra).loss(*x), drawn_surface(fit, extra)
    draws = np.empty(0) if drawn is None else drawn.loss(*x)[:, 0]
    if not new_run:
        return interval(float(point[0, 0]), draws, fit.level)
    per_token = np.exp(FlopsPerToken.of_fit(fit)(x[0])[0, 0])
    return new_run_interval(fit, float(point[0, 0]), draws, float(per_token) * tokens)


@convert_numerical_errors
def flops_of_run(fit: LawFit, params: float, tokens: float) -> float:
    """C of a model of N parameters trained on D tokens, by the fit's FLOPs per token."""
    return tokens * float(np.exp(FlopsPerToken.of_fit(fit)(np.log([params]))[0]))


def without_draws(fit: LawFit) -> LawFit:
    """The same fit without intervals, which is faster to evaluate."""
    members = tuple(member.model_copy(update={"draws": {}}) for member in fit.members)
    return fit.model_copy(update={"draws": {}, "members": members})


class OffOptimum(Record):
    """A model of another size than the optimum, at the same training FLOPs."""

    flops: float
    params: float
    tokens: float
    loss: Interval
    new_run: Interval | None = None
    """The same loss with an interval for one further run; None if the fit has no estimate of it."""
    loss_given_up: float
    """Loss above that of the optimum, in nats."""
    extra_flops: float
    """C divided by the C at which the optimum reaches this loss, minus 1: 0.1 means 10% more FLOPs."""


def off_optimum(fit: LawFit, flops: float, params: float) -> OffOptimum:
    """Compare a model of N parameters with the optimum at the same C.

    Raises FitError for a law of the optimum only.
    """
    point_surface(fit)
    constraint = FlopsPerToken.from_knots(fit.flops_per_token)
    tokens = float(np.exp(np.log(flops) - constraint(np.log(np.array(params)))))
    loss = predict_loss(fit, params, tokens)
    point_fit = without_draws(fit)
    low, high = np.log(flops) - 30, np.log(flops)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if optimum(point_fit, float(np.exp(middle))).loss.value > loss.value else (low, middle)
        )
    return OffOptimum(
        flops=flops,
        params=params,
        tokens=tokens,
        loss=loss,
        new_run=predict_loss(fit, params, tokens, new_run=True) if covers_new_run(fit, flops) else None,
        loss_given_up=loss.value - optimum(point_fit, flops).loss.value,
        extra_flops=float(np.exp(np.log(flops) - high) - 1),
    )


class Served(Record):
    """The model with the lowest cost of training plus inference at a given loss."""

    loss: float
    params: float
    tokens: float
    flops: float
    """Training and inference together."""
    saved: float
    """Share of FLOPs saved, compared with training and serving the compute-optimal model of the same loss."""


@convert_numerical_errors
def cheapest_to_serve(fit: LawFit, loss: float, inference_tokens: float) -> Served:
    """The model that reaches ``loss`` and serves D_inf tokens for the fewest FLOPs: f(N) (D + D_inf / 3).

    Sardana et al. 2023 (arXiv 2401.00448), equation 3. Raises FitError for a loss at or below the irreducible
    loss of the law.
    """
    point_surface(fit)
    point_fit = without_draws(fit)
    training = _solve_flops(point_fit, loss, 0.0)
    served = _solve_flops(point_fit, loss, inference_tokens)
    cheapest = optimum(point_fit, served, inference_tokens=inference_tokens)
    standard = optimum(point_fit, training)
    per_token = np.exp(FlopsPerToken.from_knots(fit.flops_per_token)(np.log(np.array(standard.params.value))))
    separate = training + float(per_token) * inference_tokens / 3
    return Served(
        loss=loss,
        params=cheapest.params.value,
        tokens=cheapest.tokens.value,
        flops=served,
        saved=1 - served / separate,
    )


def _solve_flops(fit: LawFit, loss: float, inference_tokens: float) -> float:
    """Solve for the C at which the optimum has this loss, by bisection: the loss of the optimum falls with C."""
    low, high = np.log(1e6) + np.log1p(inference_tokens), np.log(1e40)
    if optimum(fit, float(np.exp(high)), inference_tokens=inference_tokens).loss.value > loss:
        raise FitError(f"the law cannot reach a loss of {loss:g}: give a loss above its irreducible loss")
    for _ in range(80):
        middle = (low + high) / 2
        is_above = optimum(fit, float(np.exp(middle)), inference_tokens=inference_tokens).loss.value > loss
        low, high = (middle, high) if is_above else (low, middle)
    return float(np.exp(high))


def disagreement(first: LawFit, second: LawFit, flops: float | None = None) -> list[Diagnostic]:
    """Warn if the intervals of N_opt of two fits of the same runs do not overlap at C.

    Default C: 10 times the largest fitted C. Disjoint intervals mean a biased fit or an interval that is too
    narrow.
    """
    target = flops or 10 * max(first.flops_range[1], second.flops_range[1])
    a, b = (optimum(fit, target).params for fit in (first, second))
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return []
    if a.low <= b.high and b.low <= a.high:
        return []
    names = f"{first.fitter.name} ({a}) and {second.fitter.name} ({b})"
    message = (
        f"{names} disagree on N_opt at C = {numbers.scientific(target)} by more than their "
        "intervals, so the form of a law "
        "decides the answer: look at the profiles and at lack-of-fit, compare other laws, and plan for both"
    )
    return [Diagnostic(code="disagreement", message=message)]


class Cost(Record):
    """Cost of training FLOPs on a device."""

    device_hours: float
    money: float | None = None


def training_cost(
    flops: float, peak_flops: float, utilisation: float, price_per_hour: float | None = None
) -> Cost:
    """Device hours and price at ``utilisation`` (MFU, 0 to 1) of ``peak_flops`` (FLOP/s)."""
    if not (flops > 0 and peak_flops > 0 and 0 < utilisation <= 1):
        raise FitError("flops and peak_flops must be positive, and utilisation between 0 and 1")
    hours = flops / (peak_flops * utilisation) / 3600
    return Cost(device_hours=hours, money=None if price_per_hour is None else hours * price_per_hour)


def checklist(fit: LawFit, source: str = "") -> list[tuple[str, str]]:
    """Facts to report with a fit, after (Mis)fitting (Li et al. 2025, arXiv 2502.18969)."""
    codes = {diagnostic.code: diagnostic.message for diagnostic in fit.diagnostics}
    spread = f"{fit.draw_count} bootstrap draws, seed {fit.seed}" if fit.draw_count else "none"
    excluded = "nothing" if not fit.excluded else f"{len(fit.excluded)}: " + _count_reasons(fit.excluded)
    return [
        ("law", _describe_law(fit)),
        ("fitted to", source or "runs of a study"),
        ("runs used", str(fit.n_runs)),
        ("left out", excluded),
        ("FLOPs range", numbers.span(*fit.flops_range, numbers.scientific)),
        ("N counts", fit.params_name),
        ("C counts", fit.flops_name + ("" if fit.flops_per_token else ", within 1% of 6 N D")),
        ("D counts", fit.unit),
        (
            "loss",
            f"held-out{f' on {fit.eval_set}' if fit.eval_set else ''}, nats per token, as recorded in the runs",
        ),
        ("fitter and options", f"{fit.fitter.name} {fit.fitter.options or '(defaults)'}"),
        ("objective", f"{codes.get('objective', 'least squares')}: {fit.objective:.6g}"),
        ("uncertainty", f"{fit.level:.0%} intervals from {spread}, {fit.failed_draws} failed"),
        (
            "warnings",
            "; ".join(diagnostic.message for diagnostic in fit.diagnostics if diagnostic.severity == "warning")
            or "none",
        ),
    ]


def _count_reasons(excluded: Mapping[str, str]) -> str:
    counts: dict[str, int] = {}
    for reason in excluded.values():
        counts[reason] = counts.get(reason, 0) + 1
    return "; ".join(f"{count} x {reason}" for reason, count in counts.items())


def _describe_law(fit: LawFit) -> str:
    if not fit.members:
        return f"{fit.law.name}, parameters {', '.join(fit.law.parameters)}"
    names = dict.fromkeys(member.law.name for member in fit.members)
    return "; ".join(f"{name}: {find_law(name).formula}" for name in names) + ", averaged by backtests"


def _further_inputs(fit: LawFit) -> set[str]:
    names = [member.law.name for member in fit.members] or [fit.law.name]
    return {name for law in names for name in find_law(law).inputs}
