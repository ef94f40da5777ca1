"""Compute-optimal N and D for a budget, from a fitted law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.diagnostics import extrapolation, note, outside_sizes
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.forms import SURFACES, Parameters, Surface, closed_form, parametric
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.records import Interval, LawFit, Observation, Optimum

Point = tuple[Floats, Floats, Floats]
"""Ln of N, D and L, one entry per draw."""


@convert_numerical_errors
def optimum(
    fit: LawFit, flops: float, inference_tokens: float = 0.0, unique_tokens: float | None = None
) -> Optimum:
    """N_opt, D_opt and L_opt under the constraint f(N) D = C, with intervals from the fit's draws.

    With ``inference_tokens`` D_inf, ``flops`` covers training and inference: f(N) D + f(N) D_inf / 3, which is
    6 N D + 2 N D_inf for f = 6 N (Sardana et al. 2023, arXiv 2401.00448). With ``unique_tokens``, further tokens
    are repetitions; this needs a law fitted to repeated data (muennighoff).

    Raises FitError for a budget that is not a positive number or too small for D_inf, and for an unknown law.
    """
    if not (np.isfinite(flops) and flops > 0):
        raise FitError(f"flops = {flops}: give a positive number of training FLOPs, such as 1e21")
    if not (np.isfinite(inference_tokens) and inference_tokens >= 0):
        raise FitError(f"inference_tokens = {inference_tokens}: give a number of tokens, such as 1e12")
    if unique_tokens is not None and not (np.isfinite(unique_tokens) and unique_tokens > 0):
        raise FitError(f"unique_tokens = {unique_tokens}: give a number of tokens, such as 1e11")
    target = (flops, inference_tokens, unique_tokens)
    value = {name: (value,) for name, value in fit.law.parameters.items()}
    point = _optima(fit, value, FlopsPerToken.of_fit(fit), *target)
    no_draws = (np.empty(0),) * 3
    drawn = _optima(fit, fit.draws, FlopsPerToken.of_fit(fit, drawn=True), *target) if fit.draws else no_draws
    # Clip draws that hardly determine the law: N and D lie between 1 and C.
    limits_by_quantity = (0.0, np.log(flops)), (0.0, np.log(flops)), (-700.0, 700.0)
    params, tokens, loss = (
        interval(float(np.exp(value[0])), np.exp(np.clip(draws, *limits)), fit.level)
        for value, draws, limits in zip(point, drawn, limits_by_quantity, strict=True)
    )
    notes = extrapolation(flops, fit.flops_range)
    side, message = (None, "") if fit.params_range is None else outside_sizes(params.value, fit.params_range)
    notes = (*notes, message) if message else notes
    return Optimum(flops=flops, params=params, tokens=tokens, loss=loss, notes=notes, outside=side)


def follow_family(
    fit: LawFit, points: Sequence[tuple[float, float]], observations: Sequence[Observation]
) -> LawFit:
    """Recompute optima and exponents along (N, FLOPs per token) of many sizes of the runs' model family.

    Returns the fit unchanged for a law of the optimum only, for too few points, and if the runs' FLOPs per token
    differ from the family's.
    """
    runs = Runs.of([observation for observation in observations if observation.id not in fit.excluded])
    constraint = FlopsPerToken.of_family(points, runs) if points and fit.law.name in SURFACES else None
    if constraint is None:
        return fit
    law = {name: np.array([value]) for name, value in fit.law.parameters.items()}
    drawn = {name: np.array(values) for name, values in fit.draws.items()} or {"": np.empty(0)}
    intervals = exponents(
        SURFACES[fit.law.name], law, drawn, (constraint,) * 2, np.array(fit.flops_range), fit.level
    )
    message = f"FLOPs per token of further sizes are the family's own count, to N = {points[-1][0]:.3g}"
    return fit.model_copy(
        update={
            "exponents": {**fit.exponents, **intervals},
            "flops_per_token": constraint.knots(),
            "flops_per_token_modes": (),
            "flops_per_token_draws": (),
            "diagnostics": (*fit.diagnostics, note("flops-per-token", message)),
        }
    )


def _optima(
    fit: LawFit,
    parameters: Mapping[str, Sequence[float]],
    constraint: FlopsPerToken,
    flops: float,
    inference_tokens: float,
    unique_tokens: float | None,
) -> Point:
    law = {name: np.asarray(values, dtype=float) for name, values in parameters.items()}
    if unique_tokens is not None:
        if fit.law.name != "muennighoff":
            raise FitError(f"law {fit.law.name!r} has no term for repeated tokens: use fitter muennighoff")
        law["ln_unique"] = np.full(len(law["E"]), np.log(unique_tokens))
    if fit.law.name in ("isoflop", "envelope"):
        if inference_tokens:
            raise FitError(
                f"law {fit.law.name!r} gives the optimum only, not the loss at other N and D: use "
                "fitter parametric"
            )
        return _power_laws(law, flops)
    if fit.law.name not in SURFACES:
        raise FitError(f"cannot compute the optimum of law {fit.law.name!r}: call optimum() of its fitter")
    return minimise(SURFACES[fit.law.name], law, constraint, flops, inference_tokens)


def _power_laws(law: Parameters, flops: float) -> Point:
    ln_flops = np.log(flops)
    loss = law["E"] + np.exp(law["ln_kL"] - law["gamma"] * ln_flops)
    return law["ln_kN"] + law["a"] * ln_flops, law["ln_kD"] + law["b"] * ln_flops, np.log(loss)


def minimise(
    surface: Surface,
    law: Parameters,
    constraint: FlopsPerToken,
    flops: float | Floats,
    inference_tokens: float = 0.0,
) -> Point:
    """The minimum of the loss along f(N) (D + D_inf / 3) = C, per entry of the law's parameters.

    ``flops`` is a number, or an array with an entry per minimum.

    Closed form for Approach 3 with f = 6 N. Otherwise a scan in ln N brackets the minimum, and bisection of the
    derivative solves for it to rounding.
    """
    columns = {name: values[:, None] for name, values in law.items()}
    if surface is parametric and constraint.is_6n and not inference_tokens:
        x = closed_form(law, np.log(flops))
        ln_tokens = np.log(flops) - constraint(x)
        return x, ln_tokens, np.log(parametric(law, x, ln_tokens)[0])
    flops = np.atleast_1d(np.asarray(flops, dtype=float))[:, None]
    high = _largest_ln_params(constraint, flops, inference_tokens)
    if constraint.is_drawn and len(flops) == 1:
        high = high.max(axis=0, keepdims=True)  # one scan serves all draws
    scan = high - np.linspace(80.0, 0.0, 400)[None, :-1]
    loss = surface(columns, scan, _ln_tokens(constraint, scan, flops, inference_tokens)[0])[0]
    best = np.clip(np.argmin(np.where(np.isfinite(loss), loss, np.inf), axis=1), 1, scan.shape[1] - 2)
    scan = np.broadcast_to(scan, loss.shape)
    rows = np.arange(len(loss))
    left, right = scan[rows, best - 1][:, None], scan[rows, best + 1][:, None]
    for _ in range(56):
        middle = (left + right) / 2
        ln_tokens, share = _ln_tokens(constraint, middle, flops, inference_tokens)
        _, by_params, by_tokens = surface(columns, middle, ln_tokens)
        # d ln D / d ln N along the constraint is -slope (1 + D_inf / (3 D)).
        rising = by_params - constraint.slope(middle) * share * by_tokens > 0
        left, right = np.where(rising, left, middle), np.where(rising, middle, right)
    x = (left + right) / 2
    ln_tokens = _ln_tokens(constraint, x, flops, inference_tokens)[0]
    return x[:, 0], ln_tokens[:, 0], np.log(surface(columns, x, ln_tokens)[0])[:, 0]


def exponents(
    surface: Surface,
    law: Parameters,
    drawn: Parameters,
    constraints: tuple[FlopsPerToken, FlopsPerToken],
    flops: Floats,
    level: float,
) -> dict[str, Interval]:
    """Exponents a and b between the smallest and the largest fitted C (at every C, if f is a power of N).

    ``constraints`` are those of the law and of its draws.
    """
    low, high = float(flops.min()), float(flops.max())
    high = max(high, low * np.e)
    slopes = []
    for parameters, constraint in zip((law, drawn), constraints, strict=True):
        if not len(next(iter(parameters.values()))):
            slopes.append((np.empty(0), np.empty(0)))
            continue
        first, last = (minimise(surface, parameters, constraint, c) for c in (low, high))
        slopes.append(tuple((last[part] - first[part]) / np.log(high / low) for part in (0, 1)))
    return {
        key: interval(float(slopes[0][part][0]), slopes[1][part], level) for part, key in enumerate(("a", "b"))
    }


def _ln_tokens(
    constraint: FlopsPerToken, ln_params: Floats, flops: Floats, inference_tokens: float
) -> tuple[Floats, Floats]:
    """Ln D at ln N, and (D + D_inf / 3) / D."""
    ln_total = np.log(flops) - constraint(ln_params)
    if not inference_tokens:
        return ln_total, np.ones_like(ln_total)
    tokens = np.maximum(np.exp(ln_total) - inference_tokens / 3, 1e-300)
    return np.log(tokens), np.exp(ln_total) / tokens


def _largest_ln_params(constraint: FlopsPerToken, flops: Floats, inference_tokens: float) -> Floats:
    """Ln of the largest N that the budget allows: trained on one token, plus D_inf tokens of inference."""
    target = np.log(flops) - np.log1p(inference_tokens / 3)
    low, high = np.full_like(flops, -100.0), np.full_like(flops, 300.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = constraint(middle) > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return low
