"""Fitters: ``isoflop`` (a profile a budget) and ``parametric`` (one loss surface through all runs)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from flops_fit_core.plugins import Fitter, FitterSpec, Options, hookimpl


class BootstrapOptions(Options):
    """What every bundled fitter takes."""

    level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Of all intervals: 0.9 for 90%."""
    draws: Annotated[int, Field(ge=0)] = 1000
    """Bootstrap draws behind the intervals; 0 for none."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the bootstrap."""


class IsoflopOptions(BootstrapOptions):
    """Approach 2 of Hoffmann et al. 2022: a profile a budget, a line through the minima."""

    response: Literal["log-loss", "loss"] = "log-loss"
    """What the profiles are fitted to."""
    shape: Literal["parabola", "cubic", "akima"] = "parabola"
    """Of a profile. ``akima`` interpolates (Porian et al. 2024) and assumes their seed noise."""


class ParametricOptions(BootstrapOptions):
    """Approach 3 of Hoffmann et al. 2022: L = E + A / N^alpha + B / D^beta."""

    objective: Literal["robust", "least-squares", "huber"] = "robust"
    """Of the residuals of ln L. ``robust``: least squares without gross outliers, each named. ``huber``: delta
    1e-3, as published."""
    bootstrap: Literal["residuals", "cases"] = "residuals"
    """``cases`` draws whole runs (trunks, where runs share one) with replacement; needs 20 of them."""


def isoflop(options: Any) -> Fitter:
    from flops_fit_core.fitting import IsoflopFitter

    return IsoflopFitter(**options.model_dump())


def parametric(options: Any) -> Fitter:
    from flops_fit_core.fitting import ParametricFitter

    return ParametricFitter(**options.model_dump())


def kaplan(options: Any) -> Fitter:
    from flops_fit_core.fitting import JointFitter

    return JointFitter(form="kaplan", **options.model_dump())


def muennighoff(options: Any) -> Fitter:
    from flops_fit_core.fitting import JointFitter

    return JointFitter(form="muennighoff", **options.model_dump())


def envelope(options: Any) -> Fitter:
    from flops_fit_core.fitting import EnvelopeFitter

    return EnvelopeFitter(**options.model_dump())


@hookimpl
def flops_fit_fitters() -> Iterable[FitterSpec]:
    """Offer the bundled fitters."""
    yield FitterSpec(name="isoflop", options=IsoflopOptions, build=isoflop)
    yield FitterSpec(name="parametric", options=ParametricOptions, build=parametric)
    yield FitterSpec(name="kaplan", options=BootstrapOptions, build=kaplan)
    yield FitterSpec(name="muennighoff", options=BootstrapOptions, build=muennighoff)
    yield FitterSpec(name="envelope", options=BootstrapOptions, build=envelope)
