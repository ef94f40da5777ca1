"""An earlier fit as the guess that centres the sizes of a new sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flops_fit_core.config import Experiment, build_fitter, choose_from_table
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import LawFit


def expected_params(experiment: Experiment, registry: Registry) -> Callable[[float], float] | None:
    """N_opt(C) of ``sweep.init_from_fit``, or None if the experiment names no fit."""
    if experiment.sweep.init_from_fit is None:
        return None
    from flops_fit_core.fitting import load_fit

    law = load_fit(Path(experiment.sweep.init_from_fit))
    fitter = fitter_of(law, registry)
    return lambda flops: fitter.optimum(law, flops).params.value


def fitter_of(law: LawFit, registry: Registry) -> Fitter:
    """The fitter that made a fit, with its options. Raises ConfigError if it is not installed."""
    chosen = choose_from_table("fitter", {"name": law.fitter.name, **law.fitter.options}, registry, "fit")
    return build_fitter(chosen)
