"""FLOPs counters: ``chinchilla`` (6 N D), ``model`` (the family's count), ``hoffmann`` (a formula), ``traced``
(torch's count)."""

from __future__ import annotations

from collections.abc import Iterable

from flops_fit_core import ConfigError
from flops_fit_core.plugins import CounterInput, FlopCount, FlopCounterSpec, hookimpl
from flops_fit_counters.hoffmann import HoffmannOptions, count_hoffmann
from flops_fit_counters.size import CounterOptions, params


def count_chinchilla(options: CounterOptions, model: CounterInput) -> FlopCount:
    """C = 6 N D: 2 FLOPs per parameter and token forward, 4 backward (Kaplan et al. 2020, section 2.1; Hoffmann
    et al. 2022, section 3.3). Leaves out attention, which is not small for a small width and a long context, and
    inactive experts, even if N is all parameters."""
    n, name = params(options, model)
    inactive = model.parameters.inactive if options.n == "total" else 0
    return FlopCount(6.0 * (n - inactive), n, "6 N D with N of active parameters" if inactive else "6 N D", name)


def count_own(options: CounterOptions, model: CounterInput) -> FlopCount:
    """C by the family's ``flops_per_token``. Raises ConfigError for a family that does not count its FLOPs."""
    if model.own_flops_per_token is None:
        raise ConfigError(
            f'model {model.family!r} does not count its FLOPs: write counter = "chinchilla" (6 N D) or '
            f'"traced" (what torch counts)'
        )
    n, name = params(options, model)
    return FlopCount(model.own_flops_per_token, n, f"counted by model {model.family}", name)


def count_traced(options: CounterOptions, model: CounterInput) -> FlopCount:
    """C by torch's count of every matrix product and convolution in a forward and backward pass, with attention
    over the full context. The model runs without values. Raises ConfigError, which names the operation, for a
    model that cannot be traced."""
    from flops_fit_core.flops import trace_flops

    n, name = params(options, model)
    trace = trace_flops(model.module, model.task, f"model {model.family!r}")
    return FlopCount(
        trace.flops_per_token,
        n,
        "matrix products and convolutions, forward and backward, as torch counts them",
        name,
        trace.operations,
    )


@hookimpl
def flops_fit_flop_counters() -> Iterable[FlopCounterSpec]:
    """Offer ``chinchilla``, ``model``, ``hoffmann`` and ``traced``."""
    yield FlopCounterSpec(name="chinchilla", options=CounterOptions, build=count_chinchilla)
    yield FlopCounterSpec(name="model", options=CounterOptions, build=count_own)
    yield FlopCounterSpec(name="hoffmann", options=HoffmannOptions, build=count_hoffmann)
    yield FlopCounterSpec(name="traced", options=CounterOptions, build=count_traced)
