"""FLOPs counters: ``chinchilla`` (6 N D), ``model`` (the family's own count), ``hoffmann`` (a formula), ``traced``
(torch's own count)."""

from __future__ import annotations

from collections.abc import Iterable

from flops_fit_core import ConfigError
from flops_fit_core.plugins import CounterInput, FlopCount, FlopCounterSpec, hookimpl
from flops_fit_counters.hoffmann import HoffmannOptions, count_hoffmann
from flops_fit_counters.size import CounterOptions, params


def count_chinchilla(options: CounterOptions, measured: CounterInput) -> FlopCount:
    """C = 6 N D: 2 FLOPs a parameter and token forward, 4 backward (Kaplan et al. 2020, section 2.1; Hoffmann
    et al. 2022, section 3.3). Leaves out attention, which at a small width and a long context is not small,
    and experts that a token is not sent to, also where N is all parameters."""
    n, name = params(options, measured)
    idle = measured.parameters.inactive if options.n == "total" else 0
    return FlopCount(6.0 * (n - idle), n, "6 N D with N of what a token uses" if idle else "6 N D", name)


def count_own(options: CounterOptions, measured: CounterInput) -> FlopCount:
    """The family's own ``flops_per_token``. Raises ConfigError for a family without one."""
    if measured.own_flops_per_token is None:
        raise ConfigError(
            f'model {measured.family!r} does not count its own FLOPs: write counter = "chinchilla" (6 N D) or '
            f'"traced" (what torch counts)'
        )
    n, name = params(options, measured)
    return FlopCount(measured.own_flops_per_token, n, f"as {measured.family} counts itself", name)


def count_traced(options: CounterOptions, measured: CounterInput) -> FlopCount:
    """Every matrix product and convolution of one forward and backward pass, attention over the full context
    included, counted by torch while the model runs without values. Raises ConfigError, naming the operation, for
    a model that cannot be followed."""
    from flops_fit_core.flops import trace_flops

    n, name = params(options, measured)
    trace = trace_flops(measured.module, measured.task, f"model {measured.family!r}")
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
