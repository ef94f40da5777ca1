"""FLOPs counters: ``chinchilla`` (6 N D) and ``model`` (the family's own count)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from flops_fit_core import ConfigError, FlopCount, FlopCounterSpec, MeasuredModel, Options, hookimpl

N_NAMES = {
    "matmul": "matmul parameters (all but lookup tables)",
    "total": "all parameters",
    "non-embedding": "parameters without embeddings and output head",
}


class CounterOptions(Options):
    """Which parameters count."""

    n: Literal["matmul", "total", "non-embedding"] = "matmul"
    """Which N is counted and reported. ``matmul``: all parameters but tables that are only looked up."""


def params(options: CounterOptions, measured: MeasuredModel) -> int:
    """N by the option's convention.

    Raises ConfigError for a model that has no such parameters.
    """
    counts = measured.parameters
    by_name = {"matmul": counts.matmul, "total": counts.total, "non-embedding": counts.non_embedding}
    if by_name[options.n] < 1:
        raise ConfigError(f'model {measured.family!r} has no {N_NAMES[options.n]}: write n = "total" in [flops]')
    return by_name[options.n]


def count_chinchilla(options: CounterOptions, measured: MeasuredModel) -> FlopCount:
    """C = 6 N D: 2 FLOPs a parameter and token forward, 4 backward (Kaplan et al. 2020, section 2.1; Hoffmann
    et al. 2022, section 3.3). Leaves out attention, which at a small width and a long context is not small."""
    n = params(options, measured)
    return FlopCount(6.0 * n, n, "6 N D", N_NAMES[options.n])


def count_own(options: CounterOptions, measured: MeasuredModel) -> FlopCount:
    """The family's own ``flops_per_token``. Raises ConfigError for a family without one."""
    if measured.own_flops_per_token is None:
        raise ConfigError(
            f'model {measured.family!r} does not count its own FLOPs: write flops = "chinchilla" (6 N D)'
        )
    n = params(options, measured)
    return FlopCount(measured.own_flops_per_token, n, f"as {measured.family} counts itself", N_NAMES[options.n])


@hookimpl
def flops_fit_flop_counters() -> Iterable[FlopCounterSpec]:
    """Offer ``chinchilla`` and ``model``."""
    yield FlopCounterSpec(name="chinchilla", options=CounterOptions, build=count_chinchilla)
    yield FlopCounterSpec(name="model", options=CounterOptions, build=count_own)
