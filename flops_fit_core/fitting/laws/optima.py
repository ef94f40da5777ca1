"""Compute-optimal N and D for a budget, from a fitted law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats, Ints, Runs
from flops_fit_core.fitting.diagnostics import extrapolation, factor_beyond, note, outside_sizes
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.root import find_roots
from flops_fit_core.fitting.laws.surfaces import (
    LawSurface,
    Surface,
    drawn_surface,
    has_optimum,
    has_surface,
    point_surface,
)
from flops_fit_core.fitting.new_run import covers_new_run, new_run_interval
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.records import Interval, LawFit, LawMember, Observation, Optimum

POWER_LAWS = ("isoflop", "envelope")
"""Laws of the optimum only."""
_TOLERANCE = 1e-12
"""Of the balance at a minimum; a unit of ln N changes it by about alpha + beta."""
Point = tuple[Floats, Floats, Floats]
"""Ln of N, D and L, one entry per draw."""


@convert_numerical_errors
def optimum(
    fit: LawFit,
    flops: float,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    inputs: Mapping[str, float] | None = None,
) -> Optimum:
    """N_opt, D_opt and L_opt under the constraint f(N) D = C, with intervals from the fit's draws.

    With ``inference_tokens`` D_inf, ``flops`` covers training and inference: f(N) D + f(N) D_inf / 3, which is
    6 N D + 2 N D_inf for f = 6 N (Sardana et al. 2023, arXiv 2401.00448). With ``unique_tokens``, further tokens
    are repetitions; this needs a law fitted to repeated data (muennighoff). ``inputs`` has the values of a law's
    further inputs, such as experts.

    Raises FitError for a budget that is not a positive number or too small for D_inf, and for an unknown law.
    """
    if not (np.isfinite(flops) and flops > 0):
        raise FitError(f"flops = {flops}: give a positive number of training FLOPs, such as 1e21")
    if not (np.isfinite(inference_tokens) and inference_tokens >= 0):
        raise FitError(f"inference_tokens = {inference_tokens}: give a number of tokens, such as 1e12")
    if unique_tokens is not None and not (np.isfinite(unique_tokens) and unique_tokens > 0):
        raise FitError(f"unique_tokens = {unique_tokens}: give a number of tokens, such as 1e11")
    if has_surface(fit) and not has_optimum(fit):
        raise FitError(f"law {fit.law.name!r} has no D, so a budget has no optimum: predict a loss instead")
    if has_surface(fit) and not fit.members and find_law(fit.law.name).response == "loss":
        raise FitError(
            f"the loss of law {fit.law.name!r} may be negative, and optima are for ln L: predict the loss instead"
        )
    extra = dict(inputs or {})
    if unique_tokens is not None:
        _check_repetition(fit)
        extra["unique_tokens"] = unique_tokens
    if fit.law.name in POWER_LAWS:
        if inference_tokens:
            raise FitError(
                f"law {fit.law.name!r} gives the optimum only, not the loss at other N and D: use fitter average"
            )
        point, drawn = (_power_laws(values, flops) for values in (fit.law.parameters, fit.draws))
    else:
        surface, stack = point_surface(fit, extra), drawn_surface(fit, extra)
        point = minimise(surface, FlopsPerToken.of_fit(fit), flops, inference_tokens)
        no_draws = (np.empty(0),) * 3
        drawn_constraint = FlopsPerToken.of_fit(fit, drawn=True)
        drawn = no_draws if stack is None else minimise(stack, drawn_constraint, flops, inference_tokens)
    return describe_optimum(fit, flops, inference_tokens, point, drawn)


def describe_optimum(
    fit: LawFit, flops: float, inference_tokens: float, point: Point, drawn: Point, *, new_run: bool = True
) -> Optimum:
    """The optimum with intervals, from ln N, ln D and ln L of the law (1,) and of its draws (draws,).

    ``new_run``: whether to compute the interval of a new run, if the fit has an estimate of it.
    """
    # Clip draws that hardly determine the law: N and D lie between 1 and C.
    limits_by_quantity = (0.0, np.log(flops)), (0.0, np.log(flops)), (-700.0, 700.0)
    params, tokens, loss = (
        interval(float(np.exp(value[0])), np.exp(np.clip(draws, *limits)), fit.level)
        for value, draws, limits in zip(point, drawn, limits_by_quantity, strict=True)
    )
    notes = extrapolation(flops, fit.flops_range)
    side, message = (None, "") if fit.params_range is None else outside_sizes(params.value, fit.params_range)
    notes = (*notes, message) if message else notes
    of_new_run = None
    training = flops if not inference_tokens else float(tokens.value * np.exp(_ln_per_token(fit, params.value)))
    if new_run and covers_new_run(fit, training):
        of_new_run = new_run_interval(fit, loss.value, np.exp(np.clip(drawn[2], -700.0, 700.0)), training)
    return Optimum(
        flops=flops,
        params=params,
        tokens=tokens,
        loss=loss,
        new_run=of_new_run,
        notes=notes,
        beyond=factor_beyond(flops, fit.flops_range),
        outside=side,
    )


@convert_numerical_errors
def member_answers(fit: LawFit, flops: float) -> list[dict[str, float | str | None]]:
    """For each law of an average: its name, weight, backtest error, a, and N_opt and L at C = ``flops``."""
    constraint = FlopsPerToken.of_fit(fit)
    answers: list[dict[str, float | str | None]] = []
    for member in fit.members:
        ln_params, _, ln_loss = minimise(_member_surface(member), constraint, flops)
        answers.append(
            {
                "law": member.law.name,
                "runs": "largest favoured" if member.drift else "equal weights",
                "weight": member.weight,
                "error": member.errors[-1] if member.errors else None,
                "a": member.exponents["a"].value,
                "params": float(np.exp(ln_params[0])),
                "loss": float(np.exp(ln_loss[0])),
            }
        )
    return answers


def _member_surface(member: LawMember) -> LawSurface:
    values = {name: np.array([value]) for name, value in member.law.parameters.items()}
    return LawSurface(find_law(member.law.name), values)


def follow_family(
    fit: LawFit, points: Sequence[tuple[float, float]], observations: Sequence[Observation]
) -> LawFit:
    """Recompute optima and exponents along (N, FLOPs per token) of many sizes of the runs' model family.

    Returns the fit unchanged for a law of the optimum only, for too few points, and if the runs' FLOPs per token
    differ from the family's.
    """
    runs = Runs.of([observation for observation in observations if observation.id not in fit.excluded])
    constraint = FlopsPerToken.of_family(points, runs) if points and has_surface(fit) else None
    if constraint is None:
        return fit
    surfaces = point_surface(fit), drawn_surface(fit)
    intervals = exponents(*surfaces, (constraint,) * 2, np.array(fit.flops_range), fit.level)
    members = tuple(
        member.model_copy(
            update={
                "exponents": exponents(
                    _member_surface(member), None, (constraint,) * 2, np.array(fit.flops_range), fit.level
                )
            }
        )
        for member in fit.members
    )
    message = f"FLOPs per token of further sizes are the family's own count, to N = {numbers.count(points[-1][0])}"
    return fit.model_copy(
        update={
            "exponents": {**fit.exponents, **intervals},
            "members": members,
            "flops_per_token": constraint.knots(),
            "flops_per_token_modes": (),
            "flops_per_token_draws": (),
            "diagnostics": (*fit.diagnostics, note("flops-per-token", message)),
        }
    )


def _ln_per_token(fit: LawFit, params: float) -> float:
    """Ln of the training FLOPs per token of a model of N parameters."""
    return float(FlopsPerToken.of_fit(fit)(np.log(np.array([params])))[0])


def _check_repetition(fit: LawFit) -> None:
    """Raises FitError for a law without a term for repeated tokens."""
    names = [member.law.name for member in fit.members] or [fit.law.name]
    if fit.law.name in POWER_LAWS or not any("unique_tokens" in find_law(name).inputs for name in names):
        raise FitError(f"law {fit.law.name!r} has no term for repeated tokens: fit with --law muennighoff")


def _power_laws(parameters: Mapping[str, Sequence[float] | float], flops: float) -> Point:
    law = {name: np.atleast_1d(np.asarray(values, dtype=float)) for name, values in parameters.items()}
    if not law:
        return (np.empty(0),) * 3
    ln_flops = np.log(flops)
    loss = law["E"] + np.exp(law["ln_kL"] - law["gamma"] * ln_flops)
    return law["ln_kN"] + law["a"] * ln_flops, law["ln_kD"] + law["b"] * ln_flops, np.log(loss)


def minimise(
    surface: Surface,
    constraint: FlopsPerToken,
    flops: float | Floats,
    inference_tokens: float = 0.0,
) -> Point:
    """The minimum of the loss along f(N) (D + D_inf / 3) = C, per row of the surface.

    ``flops`` is a number, or an array with an entry per minimum.

    Closed form for Approach 3 with f = 6 N. Otherwise a scan in ln N brackets the minimum, and the Illinois method
    solves for it, to about 1e-12 / (alpha + beta) in ln N; bisection does where the loss rises with N or D, or the
    bracket has no minimum.
    """
    if constraint.is_6n and not inference_tokens and _is_chinchilla(surface):
        x = _closed_form(surface.values, np.log(flops))
        ln_tokens = np.log(flops) - constraint(x)
        return x, ln_tokens, np.log(surface.loss(x[:, None], ln_tokens[:, None]))[:, 0]
    flops = np.atleast_1d(np.asarray(flops, dtype=float))[:, None]
    high = _largest_ln_params(constraint, flops, inference_tokens)
    if constraint.is_drawn and len(flops) == 1:
        high = high.max(axis=0, keepdims=True)  # one scan serves all draws
    distances = np.linspace(80.0, 0.0, 400)[:-1]
    if inference_tokens:
        # Near the largest N, D falls from D_inf to one token within a small fraction of ln N.
        distances = np.concatenate([distances, distances[-1] * 0.5 ** np.arange(1, 40)])
    scan = high - distances[None, :]
    loss = surface.loss(scan, descent(constraint, scan, flops, inference_tokens)[0])
    best = np.clip(_lowest(np.where(np.isfinite(loss), loss, np.inf)), 1, scan.shape[1] - 2)
    scan = np.broadcast_to(scan, loss.shape)
    rows = np.arange(len(loss))
    left, right = scan[rows, best - 1][:, None], scan[rows, best + 1][:, None]

    x, is_solved = find_roots(
        lambda x: surface.balance(x, *descent(constraint, x, flops, inference_tokens)), left, right, _TOLERANCE
    )
    rest = np.flatnonzero(~is_solved[:, 0])
    if len(rest):
        x[rest] = _bisect(
            surface.take(rest),
            constraint.take(rest),
            flops if len(flops) == 1 else flops[rest],
            inference_tokens,
            (left[rest], right[rest]),
        )
    ln_tokens = descent(constraint, x, flops, inference_tokens)[0]
    return x[:, 0], ln_tokens[:, 0], np.log(surface.loss(x, ln_tokens))[:, 0]


def _bisect(
    surface: Surface,
    constraint: FlopsPerToken,
    flops: Floats,
    inference_tokens: float,
    ends: tuple[Floats, Floats],
) -> Floats:
    """Where the loss stops falling between two ends, or one of them. It may rise with N or with D."""
    left, right = ends
    for _ in range(56):
        middle = (left + right) / 2
        ln_tokens, fall = descent(constraint, middle, flops, inference_tokens)
        by_params, by_tokens = surface.slopes(middle, ln_tokens)
        rising = by_params - fall * by_tokens > 0
        left, right = np.where(rising, left, middle), np.where(rising, middle, right)
    return (left + right) / 2


def _lowest(loss: Floats) -> Ints:
    """Column of the lowest loss of each row; an end of the row only if the row has no minimum inside.

    Farseer's law falls again where a huge model sees a few tokens, far beyond every possible run.
    """
    best: Ints = np.argmin(loss, axis=1)
    at_end = (best == 0) | (best == loss.shape[1] - 1)
    if not at_end.any():
        return best
    inside, margin = loss[:, 1:-1], 1 - 1e-12
    is_low = (inside < loss[:, :-2] * margin) & (inside < loss[:, 2:] * margin)
    minimum = np.argmin(np.where(is_low, inside, np.inf), axis=1) + 1
    lowest: Ints = np.where(at_end & is_low.any(axis=1), minimum, best)
    return lowest


def exponents(
    surface: Surface,
    drawn: Surface | None,
    constraints: tuple[FlopsPerToken, FlopsPerToken],
    flops: Floats,
    level: float,
) -> dict[str, Interval]:
    """Exponents a and b between the smallest and the largest fitted C (at every C, if f is a power of N).

    ``constraints`` are those of the law and of its draws.
    """
    slopes = [
        (np.empty(0),) * 2 if rows is None else end_slopes(rows, constraint, flops)
        for rows, constraint in zip((surface, drawn), constraints, strict=True)
    ]
    return {
        key: interval(float(slopes[0][part][0]), slopes[1][part], level) for part, key in enumerate(("a", "b"))
    }


def end_slopes(surface: Surface, constraint: FlopsPerToken, flops: Floats) -> tuple[Floats, Floats]:
    """Slopes of ln N_opt and ln D_opt by ln C between the smallest and the largest C, each (rows,)."""
    low, high = float(flops.min()), float(flops.max())
    high = max(high, low * np.e)
    first, last = (minimise(surface, constraint, c) for c in (low, high))
    ln_params, ln_tokens = ((last[part] - first[part]) / np.log(high / low) for part in (0, 1))
    return ln_params, ln_tokens


def _is_chinchilla(surface: Surface) -> TypeGuard[LawSurface]:
    return isinstance(surface, LawSurface) and surface.law is find_law("chinchilla")


def _closed_form(law: Mapping[str, Floats], ln_flops: Floats) -> Floats:
    """Ln N_opt of chinchilla in closed form for C = 6 N D (Hoffmann et al. 2022, equation 4)."""
    ratio = np.log(law["alpha"] * law["A"] / (law["beta"] * law["B"]))
    ln_params: Floats = (ratio + law["beta"] * (ln_flops - np.log(6))) / (law["alpha"] + law["beta"])
    return ln_params


def descent(
    constraint: FlopsPerToken, ln_params: Floats, flops: Floats, inference_tokens: float | Floats
) -> tuple[Floats, Floats]:
    """Ln D at ln N along f(N) (D + D_inf / 3) = C, and the fall of ln D per unit of ln N.

    ``flops`` and ``inference_tokens`` (D_inf) broadcast against ``ln_params``.
    """
    ln_per_token, slope = constraint.evaluate(ln_params)
    ln_total = np.log(flops) - ln_per_token
    if not np.any(inference_tokens):
        return ln_total, slope
    tokens = np.maximum(np.exp(ln_total) - inference_tokens / 3, 1e-300)
    return np.log(tokens), slope * np.exp(ln_total) / tokens


def _largest_ln_params(constraint: FlopsPerToken, flops: Floats, inference_tokens: float) -> Floats:
    """Ln of the largest N that the budget allows: trained on one token, plus D_inf tokens of inference."""
    target = np.log(flops) - np.log1p(inference_tokens / 3)
    low, high = np.full_like(flops, -100.0), np.full_like(flops, 300.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = constraint(middle) > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return low
