"""The data of the page's scripts, as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flops_fit_core.records import Optimum
from flops_fit_core.report.overlay.content import OverlayContent
from flops_fit_core.report.overlay.side import Side
from flops_fit_core.report.page.content import ReportContent
from flops_fit_core.report.page.figure_data import digits, figure_data

_SHOWN = ("curve", "profiles", "minima", "irreducible")


def page_data(content: OverlayContent) -> dict[str, Any]:
    """Both sides, the gain along C, and the quantities that are drawn in one figure."""
    comparison = content.gain.comparison
    return {
        "title": content.title,
        "unit": content.first.unit if content.first.unit == content.second.unit else "tokens or samples",
        "runs": [],
        "figures": {},
        "sides": [
            _side_data(letter, side, curve)
            for (letter, side), curve in zip(content.sides, content.curves, strict=True)
        ],
        "refused": dict(content.refused),
        "gain": None
        if comparison is None
        else {
            "curve": [[digits(value) for value in point] for point in comparison.curve],
            "points": [
                [digits(item.flops), digits(item.gain.value), digits(item.gain.low), digits(item.gain.high)]
                for item in comparison.gains
            ],
            "level": comparison.level,
        },
    }


def _side_data(letter: str, side: Side, curve: Sequence[Optimum]) -> dict[str, Any]:
    runs = ReportContent(side.name, side.fit, curve=curve, observations=side.observations)
    data = figure_data(runs)
    return {
        "letter": letter,
        "name": side.name,
        "paramsName": runs.params_name,
        "flopsRange": None if side.fit is None else list(side.fit.flops_range),
        "level": None if side.fit is None else side.fit.level,
        **{name: data[name] for name in _SHOWN},
        "runs": [
            {
                "id": run.id,
                "params": digits(run.params),
                "tokens": digits(run.tokens),
                "flops": digits(run.flops),
                "loss": digits(run.loss),
                "budget": digits(run.budget),
            }
            for run in side.observations
        ],
    }
