"""The data of the interactive figures, as JSON values. Numbers have six significant digits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flops_fit_core.fitting import TaskScores
from flops_fit_core.fitting.data import Floats
from flops_fit_core.records import Interval, LawFit, Optimum, ProfileMinimum, RunResult
from flops_fit_core.report.curve_choice import choose_curves
from flops_fit_core.report.page.content import ReportContent
from flops_fit_core.report.page.tasks import TaskReport
from flops_fit_core.report.profiles import build_profiles, group_by_profile
from flops_fit_core.report.residuals import compute_residuals

CURVE_POINTS = 200
"""The most points of a loss curve."""


def figure_data(content: ReportContent) -> dict[str, Any]:
    """The data of all figures by name; a figure without data is missing."""
    data: dict[str, Any] = {"curve": [_optimum(item) for item in content.curve]}
    fit = content.fit
    data["minima"] = [_minimum(item) for item in (fit.minima if fit else ())]
    data["isoflopMinima"] = [] if data["minima"] else [_minimum(item) for item in _other_minima(content)]
    data["profiles"] = _profiles(content)
    data["residuals"] = _residuals(content)
    data["lossCurves"] = loss_curves(content.results)
    data["shownCurves"] = _choose_curves(content.results, data["lossCurves"])
    data["irreducible"] = None if fit is None else digits(_irreducible_loss(fit))
    return data


def task_data(report: TaskReport) -> dict[str, Any]:
    """The figure of a task: its forecasts along C with the interval of a new run, and its runs."""
    scores = report.scores
    return {
        "name": report.fit.task,
        "chance": report.fit.chance,
        "largest": digits(report.fit.flops_range[1]),
        "curve": [
            [digits(value) for value in (item.flops, item.accuracy.value, item.new_run.low, item.new_run.high)]
            for item in report.curve
        ],
        "runs": []
        if scores is None
        else [
            [scores.ids[row], *(digits(float(column[row])) for column in _score_columns(scores))]
            for row in range(len(scores))
        ],
    }


def _score_columns(scores: TaskScores) -> tuple[Floats, ...]:
    return scores.params, scores.tokens, scores.flops, scores.accuracy


def digits(value: float | None) -> float | None:
    """Six significant digits, which keeps the page small."""
    return None if value is None else float(f"{value:.6g}")


def _interval(interval: Interval) -> list[float | None]:
    return [digits(interval.value), digits(interval.low), digits(interval.high)]


def _optimum(optimum: Optimum) -> dict[str, Any]:
    return {
        "flops": digits(optimum.flops),
        "params": _interval(optimum.params),
        "tokens": _interval(optimum.tokens),
        "loss": _interval(optimum.loss),
    }


def _minimum(minimum: ProfileMinimum) -> dict[str, Any]:
    return {
        "flops": digits(minimum.budget),
        "params": digits(minimum.params),
        "tokens": digits(minimum.tokens),
        "loss": digits(minimum.loss),
        "atEdge": minimum.at_edge,
    }


def _other_minima(content: ReportContent) -> Sequence[ProfileMinimum]:
    """Minima of the IsoFLOP profiles, if the law has none itself."""
    return content.context.isoflop.minima if content.context.isoflop is not None else ()


def _every_third(values: Floats) -> Floats:
    """Every third value and the last one."""
    return np.concatenate([values[:-1:3], values[-1:]])


def _profiles(content: ReportContent) -> list[dict[str, Any]]:
    """Each budget with its runs and its fitted profile; budgets without a law have runs only."""
    observations = list(content.observations)
    drawn = [] if content.fit is None else build_profiles(observations, content.fit)
    groups = group_by_profile(observations, drawn)
    profiles = [
        {
            "budget": digits(profile.budget),
            "params": [digits(float(value)) for value in _every_third(profile.params)],
            "loss": [digits(float(value)) for value in _every_third(profile.loss)],
            "lowest": [digits(value) for value in profile.lowest],
            "atEdge": profile.at_edge,
            "runs": [run.id for run in groups.get(profile.budget, [])],
        }
        for profile in drawn
    ]
    without_profile: dict[float | None, list[str]] = {}
    for run in groups.get(None, []):
        without_profile.setdefault(run.budget, []).append(run.id)
    for budget, runs in without_profile.items():
        profiles.append({"budget": digits(budget), "params": [], "loss": [], "lowest": None, "runs": runs})
    return sorted(profiles, key=lambda profile: (profile["budget"] is None, profile["budget"] or 0))


def _residuals(content: ReportContent) -> dict[str, Any] | None:
    if content.fit is None or not content.observations:
        return None
    residuals = compute_residuals(content.observations, content.fit)
    if residuals is None:
        return None
    return {
        "run": [run.id for run in content.observations],
        "ratio": [digits(float(value)) for value in residuals.ratio],
        "percent": [digits(float(value)) for value in residuals.percent],
        "budget": [digits(float(value)) for value in residuals.budget],
        "used": [bool(value) for value in residuals.used],
        "halfWidth": digits(residuals.half_width),
    }


def _irreducible_loss(fit: LawFit) -> float | None:
    """E of the law; of an average, the weighted mean of its laws if all have one."""
    laws = [(member.law, member.weight) for member in fit.members] or [(fit.law, 1.0)]
    if not all("E" in law.parameters for law, _ in laws):
        return None
    return sum(law.parameters["E"] * weight for law, weight in laws)


def loss_curves(results: Iterable[RunResult]) -> dict[str, dict[str, Any]]:
    """Run id -> tokens and losses of its evaluations, at most :data:`CURVE_POINTS` each.

    ``at`` has the tokens in ten-thousandths of those at the last point: a large study has 100,000 points.
    """
    curves: dict[str, dict[str, Any]] = {}
    for result in results:
        points = [(point.tokens, point.loss) for point in result.curve if point.loss is not None]
        if len(points) > 1:
            thinned = thin(points)
            last = thinned[-1][0]
            curves[result.id] = {
                "tokens": last,
                "at": [round(1e4 * tokens / last) for tokens, _ in thinned],
                "loss": [float(f"{loss:.5g}") for _, loss in thinned],
            }
    return curves


def _choose_curves(results: Iterable[RunResult], curves: Mapping[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Ids of the runs whose curves are drawn: all, or a few per budget. ``best`` are in front."""
    ends = [
        (result.id, result.run.budget, curves[result.id]["loss"][-1]) for result in results if result.id in curves
    ]
    choice = choose_curves([(budget, loss) for _, budget, loss in ends])
    return {name: [ends[place][0] for place in places] for name, places in vars(choice).items()}


def thin(points: Sequence[tuple[int, float]], most: int = CURVE_POINTS) -> list[tuple[int, float]]:
    """At most ``most`` points, equally spaced, with the first and the last."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(place * step)] for place in range(most)]
