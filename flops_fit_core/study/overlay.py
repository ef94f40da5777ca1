"""Overlay two studies, tables or fits: their sides, their gain, and the page."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from flops_fit_core.errors import FitError
from flops_fit_core.planning.init_from_fit import fitter_of
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import LawFit, Observation, Optimum, RunResult
from flops_fit_core.study.comparison import Recipe, compare_recipes
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.law import StudyLaw

if TYPE_CHECKING:
    from flops_fit_core.report.overlay import Convention, Gain, Side


def study_side(law: StudyLaw, results: list[RunResult], folder: StudyFolder) -> Side:
    """A study as one side, with or without a law."""
    from flops_fit_core.report.overlay import Side

    observations: list[Observation] = []
    fit, missing = None, ""
    try:
        observations = law.observations
        fit = law.fit
    except FitError as error:
        missing = str(error)
    return Side(
        name=folder.path.name,
        source=quote(folder.shown),
        fit=fit,
        optimum=None if fit is None else law.predict,
        observations=observations,
        plan=law.plan,
        results=results,
        eval_set=law.eval_set,
        missing=missing,
    )


def fit_side(fit: LawFit, registry: Registry, name: str = "") -> Side:
    """A fit as one side, with its runs if it has them. Raises ConfigError if its fitter is not installed."""
    from flops_fit_core.fitting import flag_outside
    from flops_fit_core.report.overlay import Side

    fitter = fitter_of(fit, registry)

    def optimum(flops: float) -> Optimum:
        return flag_outside(fit, fitter.optimum(fit, flops))

    return Side(
        name=name or f"fit by {fit.fitter.name}",
        fit=fit,
        optimum=optimum,
        observations=fit.observations,
        eval_set=fit.eval_set,
    )


def file_name(name: str) -> str:
    """A name as part of a file name: other characters than letters, digits, dots and dashes become dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "other"


def write_overlay_page(
    folder: Path,
    first: Side,
    second: Side,
    registry: Registry,
    *,
    command: str = "",
    allow_differences: bool = False,
) -> list[Path]:
    """Compare two sides and write their page, the page first in the files.

    Args:
        folder: Created if missing.
        first: A.
        second: B.
        registry: The plugins, for the defaults of options that differ.
        command: The command that compares the two; empty if there is none.
        allow_differences: Whether to compare quantities whose conventions differ, with a warning.
    """
    from flops_fit_core.report.overlay import list_conventions, write_overlay

    conventions = list_conventions(first, second, _find_unit_problem(first, second))
    gain = _compute_gain(first, second, conventions, registry, command, allow_differences)
    return write_overlay(folder, first, second, conventions, gain, allow_differences=allow_differences)


def _find_unit_problem(first: Side, second: Side) -> str:
    from flops_fit_core.fitting.comparison.checks import find_unit_problem
    from flops_fit_core.fitting.comparison.design import join_runs

    try:
        return find_unit_problem(join_runs(first.observations, second.observations), ("A", "B"))
    except FitError:  # too few runs to see a factor
        return ""


def _compute_gain(
    first: Side,
    second: Side,
    conventions: list[Convention],
    registry: Registry,
    command: str,
    allow_differences: bool,
) -> Gain:
    """The gain of B over A, or the reason why it is not computed."""
    from flops_fit_core.report.overlay import Gain
    from flops_fit_core.report.overlay.conventions import find_refused

    without_runs = [letter for letter, side in (("A", first), ("B", second)) if not side.observations]
    if without_runs:
        names = " and ".join(without_runs)
        return Gain(
            refusal=f"it needs the runs of both, and {names} has none. Name the study or the table of runs"
        )
    refused = find_refused(conventions)
    if refused and not allow_differences:
        reasons = " and ".join(dict.fromkeys(refused.values()))
        return Gain(
            refusal=f"{reasons}. If the losses can be compared nevertheless, add --allow-differences (in Python, "
            "allow_differences=True)"
        )
    try:
        comparison = compare_recipes(
            _recipe(first), _recipe(second), allow_differences=allow_differences, registry=registry
        )
    except FitError as error:
        return Gain(refusal=str(error), command=command)
    return Gain(comparison, command=command)


def _recipe(side: Side) -> Recipe:
    return Recipe(side.name, side.observations, side.plan, side.results, side.eval_set, side.diagnostics)
