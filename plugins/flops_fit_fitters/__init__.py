"""Fitters: ``average`` of several laws, ``law`` (one law by its name), ``parametric`` (Approach 3 as published),
``isoflop`` (Approach 2) and ``envelope``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from flops_fit_core.plugins import Fitter, FitterSpec, Options, hookimpl


class BootstrapOptions(Options):
    """Options of every bundled fitter."""

    level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Level of all intervals: 0.9 for 90%."""
    draws: Annotated[int, Field(ge=0)] = 1000
    """Bootstrap draws behind the intervals; 0 for none."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the bootstrap."""


class IsoflopOptions(BootstrapOptions):
    """Approach 2 of Hoffmann et al. 2022: one profile per budget, and a line through the minima, as one
    regression."""

    response: Literal["log-loss", "loss"] = "log-loss"
    """Quantity that the profiles fit."""
    shape: Literal["parabola", "cubic", "akima"] = "parabola"
    """Curve of each profile in tables and figures. With ``akima``, the law goes through the minima of interpolated
    profiles (Porian et al. 2024), with the seed noise of that paper."""
    objective: Literal["robust", "least-squares"] = "robust"
    """``robust``: without gross outliers, which are listed."""


class AverageOptions(BootstrapOptions):
    """Several laws of L(N, D), weighted by how well each predicts larger scales from smaller ones."""

    laws: tuple[str, ...] = ("chinchilla", "tied", "skaling")
    """Names of the laws; ``flops-fit laws`` lists them."""


class LawOptions(BootstrapOptions):
    """One law by its name, with its prior."""

    law: str
    """Name of the law; ``flops-fit laws`` lists them."""
    objective: Literal["robust", "least-squares", "huber"] = "robust"
    """As for ``parametric``."""
    prior: bool = True
    """Whether to use the prior that the law declares for its exponents; ``huber`` has none."""


class ParametricOptions(BootstrapOptions):
    """Approach 3 of Hoffmann et al. 2022: L = E + A / N^alpha + B / D^beta."""

    objective: Literal["robust", "least-squares", "huber"] = "robust"
    """Objective for the residuals of ln L. ``robust``: least squares without gross outliers, which are listed.
    ``huber``: delta 1e-3, as published."""
    bootstrap: Literal["residuals", "cases"] = "residuals"
    """``cases`` draws complete runs with replacement, runs with a shared stable phase together. It needs at least
    20."""


def isoflop(options: Any) -> Fitter:
    from flops_fit_core.fitting import IsoflopFitter

    return IsoflopFitter(**options.model_dump())


def parametric(options: Any) -> Fitter:
    from flops_fit_core.fitting import ParametricFitter

    return ParametricFitter(**options.model_dump())


def average(options: Any) -> Fitter:
    from flops_fit_core.fitting import AverageFitter

    return AverageFitter(**options.model_dump())


def law(options: Any) -> Fitter:
    from flops_fit_core.fitting import LawFitter

    return LawFitter(**options.model_dump())


def envelope(options: Any) -> Fitter:
    from flops_fit_core.fitting import EnvelopeFitter

    return EnvelopeFitter(**options.model_dump())


@hookimpl
def flops_fit_fitters() -> Iterable[FitterSpec]:
    """Offer the bundled fitters."""
    yield FitterSpec(name="average", options=AverageOptions, build=average)
    yield FitterSpec(name="law", options=LawOptions, build=law)
    yield FitterSpec(name="isoflop", options=IsoflopOptions, build=isoflop)
    yield FitterSpec(name="parametric", options=ParametricOptions, build=parametric)
    yield FitterSpec(name="envelope", options=BootstrapOptions, build=envelope)
