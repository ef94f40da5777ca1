"""What a person does with a fit: make it from a table, keep it, ask it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.grid import check_grid
from flops_fit_core.fitting.io.tables import RunTable
from flops_fit_core.fitting.laws.forms import SURFACES
from flops_fit_core.fitting.laws.optima import optimum
from flops_fit_core.fitting.numerical_errors import guarded
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.records import Diagnostic, Interval, LawFit, Record


def fit_table(fitter: Fitter, table: RunTable) -> LawFit:
    """Fit a table's usable rows; what reading it found is added to what the fit found."""
    if not table.observations:
        raise FitError(f"no row can be fitted. {table.summary}")
    try:
        fit = check_grid(fitter.fit(table.observations), fitter, table.observations)
    except FitError as error:
        codes = ("columns", "histories", "groups", "grid", "odd-units")
        joined = [one.message for one in table.diagnostics if one.severity == "warning" or one.code in codes]
        raise FitError("\n".join([str(error), *joined])) from None
    return fit.model_copy(
        update={
            "excluded": {**table.excluded, **fit.excluded},
            "diagnostics": (*table.diagnostics, *fit.diagnostics),
        }
    )


def write_fit(fit: LawFit, path: Path) -> None:
    """Keep a fit, its draws included, as JSON."""
    try:
        Path(path).write_text(fit.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise FitError(f"{path}: {error}") from None


def load_fit(path: Path) -> LawFit:
    """A fit that :func:`write_fit` kept. Raises FitError where it is not one."""
    try:
        return LawFit.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FitError(f"{path}: there is no such file; flops-fit fit ... --out {path} makes one") from None
    except ValidationError as error:
        line = error.errors()[0]
        place = ".".join(str(part) for part in line["loc"]) or "the file"
        raise FitError(
            f"{path} is not a fit: {place}: {line['msg']}; make one with flops-fit fit ... --out"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FitError(f"{path}: {error}") from None


def summary(fit: LawFit) -> dict[str, Any]:
    """The fit as plain data without its draws; every parameter with its interval under ``parameters``."""
    data = fit.model_dump(mode="json", exclude={"draws", "flops_per_token_modes", "flops_per_token_draws"})
    data["parameters"] = {name: one.model_dump() for name, one in parameter_intervals(fit).items()}
    return data


def parameter_intervals(fit: LawFit) -> dict[str, Interval]:
    """Every parameter of the law with its interval at the fit's level."""
    return {
        name: interval(value, np.array(fit.draws.get(name, ())), fit.level)
        for name, value in fit.law.parameters.items()
    }


@guarded
def predict_loss(fit: LawFit, params: float, tokens: float, unique_tokens: float | None = None) -> Interval:
    """Held-out loss of a model of N parameters after D tokens, with its interval (of the law, not of one run).

    Raises FitError for a law of the optimum only (isoflop, envelope).
    """
    surface = _surface(fit)
    x = np.log([[params]]), np.log([[tokens]])
    extra = {} if unique_tokens is None else {"ln_unique": np.log([[unique_tokens]])}
    point = surface({**_columns(fit.law.parameters), **extra}, *x)[0]
    drawn = surface({**_columns(fit.draws), **extra}, *x)[0][:, 0] if fit.draws else np.empty(0)
    return interval(float(point[0, 0]), drawn, fit.level)


class OffOptimum(Record):
    """A model of another size than the optimum, at the same training FLOPs."""

    flops: float
    params: float
    tokens: float
    loss: Interval
    loss_given_up: float
    """Its loss less that of the optimum, nats."""
    extra_flops: float
    """Share of C that the optimum would save at this model's loss: 0.1 means that it needs 10% more."""


def off_optimum(fit: LawFit, flops: float, params: float) -> OffOptimum:
    """What it costs to train a model of N parameters on C FLOPs instead of the optimum.

    Raises FitError for a law of the optimum only.
    """
    _surface(fit)
    constraint = FlopsPerToken.from_knots(fit.flops_per_token)
    tokens = float(np.exp(np.log(flops) - constraint(np.log(np.array(params)))))
    loss = predict_loss(fit, params, tokens)
    bare = fit.model_copy(update={"draws": {}})
    low, high = np.log(flops) - 30, np.log(flops)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if optimum(bare, float(np.exp(middle))).loss.value > loss.value else (low, middle)
        )
    return OffOptimum(
        flops=flops,
        params=params,
        tokens=tokens,
        loss=loss,
        loss_given_up=loss.value - optimum(bare, flops).loss.value,
        extra_flops=float(np.exp(np.log(flops) - high) - 1),
    )


class Served(Record):
    """The cheapest model of a given loss, trained and served."""

    loss: float
    params: float
    tokens: float
    flops: float
    """Training and inference together."""
    saved: float
    """Share of the FLOPs of training the compute-optimal model of that loss and serving it, that this saves."""


@guarded
def cheapest_to_serve(fit: LawFit, loss: float, inference_tokens: float) -> Served:
    """The model that reaches ``loss`` and serves D_inf tokens for the fewest FLOPs: f(N) (D + D_inf / 3).

    Sardana et al. 2023 (arXiv 2401.00448), equation 3. Raises FitError for a loss that the law does not reach.
    """
    _surface(fit)
    bare = fit.model_copy(update={"draws": {}})
    plain = _flops_for(bare, loss, 0.0)
    served = _flops_for(bare, loss, inference_tokens)
    best = optimum(bare, served, inference_tokens=inference_tokens)
    usual = optimum(bare, plain)
    per_token = np.exp(FlopsPerToken.from_knots(fit.flops_per_token)(np.log(np.array(usual.params.value))))
    both = plain + float(per_token) * inference_tokens / 3
    return Served(
        loss=loss, params=best.params.value, tokens=best.tokens.value, flops=served, saved=1 - served / both
    )


def _flops_for(fit: LawFit, loss: float, inference_tokens: float) -> float:
    """The C whose optimum has a loss; the optimum's loss falls with C."""
    low, high = np.log(1e6) + np.log1p(inference_tokens), np.log(1e40)
    if optimum(fit, float(np.exp(high)), inference_tokens=inference_tokens).loss.value > loss:
        raise FitError(f"the law reaches no loss of {loss:g}: ask for more than its irreducible loss")
    for _ in range(80):
        middle = (low + high) / 2
        above = optimum(fit, float(np.exp(middle)), inference_tokens=inference_tokens).loss.value > loss
        low, high = (middle, high) if above else (low, middle)
    return float(np.exp(high))


def disagreement(first: LawFit, second: LawFit, flops: float | None = None) -> list[Diagnostic]:
    """Where two fits of the same runs give N_opt at C (10 times the largest fitted, unless given) whose intervals
    do not meet: one of the two has a bias there, or both are surer than they should be."""
    at = flops or 10 * max(first.flops_range[1], second.flops_range[1])
    one, other = (optimum(fit, at).params for fit in (first, second))
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return []
    if one.low <= other.high and other.low <= one.high:
        return []
    names = f"{first.fitter.name} ({one}) and {second.fitter.name} ({other})"
    message = (
        f"{names} disagree on N_opt at C = {at:.3g} by more than their intervals: look at the profiles for skew "
        "(a parabola is biased there) and at lack-of-fit, and plan for both"
    )
    return [Diagnostic(code="disagreement", message=message)]


class Cost(Record):
    """What training FLOPs cost on a device."""

    device_hours: float
    money: float | None = None


def training_cost(
    flops: float, peak_flops: float, utilisation: float, price_per_hour: float | None = None
) -> Cost:
    """Device hours at a share ``utilisation`` (MFU) of ``peak_flops`` a second, and their price."""
    if not (flops > 0 and peak_flops > 0 and 0 < utilisation <= 1):
        raise FitError("give positive FLOPs, the device's peak FLOP/s, and its utilisation between 0 and 1")
    hours = flops / (peak_flops * utilisation) / 3600
    return Cost(device_hours=hours, money=None if price_per_hour is None else hours * price_per_hour)


def checklist(fit: LawFit, source: str = "") -> list[tuple[str, str]]:
    """What a reader needs to judge the fit, after (Mis)fitting (Li et al. 2025, arXiv 2502.18969)."""
    codes = {one.code: one.message for one in fit.diagnostics}
    spread = "none" if not fit.draws else f"{len(next(iter(fit.draws.values())))} bootstrap draws, seed {fit.seed}"
    left = "nothing" if not fit.excluded else f"{len(fit.excluded)}: " + _reasons(fit.excluded)
    return [
        ("law", f"{fit.law.name}, parameters {', '.join(fit.law.parameters)}"),
        ("fitted to", source or "runs of a study"),
        ("runs used", str(fit.n_runs)),
        ("left out", left),
        ("FLOPs range", f"{fit.flops_range[0]:.3g} to {fit.flops_range[1]:.3g}"),
        ("N counts", fit.params_name),
        ("C counts", fit.flops_name + ("" if fit.flops_per_token else ", within 1% of 6 N D")),
        ("D counts", fit.unit),
        ("loss", f"held-out{f' on {fit.heldout}' if fit.heldout else ''}, nats a token, as given by the runs"),
        ("fitter and options", f"{fit.fitter.name} {fit.fitter.options or '(defaults)'}"),
        ("objective", f"{codes.get('objective', 'least squares')}: {fit.objective:.6g}"),
        ("uncertainty", f"{fit.level:.0%} intervals from {spread}, {fit.failed_draws} failed"),
        ("warnings", "; ".join(one.message for one in fit.diagnostics if one.severity == "warning") or "none"),
    ]


def _reasons(excluded: Mapping[str, str]) -> str:
    counts: dict[str, int] = {}
    for reason in excluded.values():
        counts[reason] = counts.get(reason, 0) + 1
    return "; ".join(f"{count} x {reason}" for reason, count in counts.items())


def _surface(fit: LawFit) -> Any:
    if fit.law.name not in SURFACES:
        raise FitError(
            f"law {fit.law.name!r} knows the optimum only, not the loss beside it: use fitter parametric"
        )
    return SURFACES[fit.law.name]


def _columns(parameters: Mapping[str, float | Sequence[float]]) -> dict[str, Any]:
    return {name: np.atleast_1d(np.asarray(values, dtype=float))[:, None] for name, values in parameters.items()}
