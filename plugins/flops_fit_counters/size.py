"""Which parameters are N."""

from __future__ import annotations

from typing import Literal

from flops_fit_core import ConfigError
from flops_fit_core.plugins import CounterInput, Options

N_NAMES = {
    "matmul": "matmul parameters (all but lookup tables)",
    "total": "all parameters",
    "non-embedding": "parameters without embeddings and output head",
}


class CounterOptions(Options):
    """Which parameters count."""

    n: Literal["matmul", "total", "non-embedding"] = "matmul"
    """Which N is counted and reported. ``matmul``: all parameters but tables that are only looked up. Of a mixture
    of experts, ``matmul`` and ``non-embedding`` are of those that one token uses."""


def params(options: CounterOptions, measured: CounterInput) -> tuple[int, str]:
    """N by the option's convention, and what it is. Experts that a token is not sent to count in ``total`` only.

    Raises ConfigError for a model that has no such parameters.
    """
    counts = measured.parameters
    by_name = {"matmul": counts.matmul, "total": counts.total, "non-embedding": counts.non_embedding}
    if by_name[options.n] < 1:
        raise ConfigError(f'model {measured.family!r} has no {N_NAMES[options.n]}: write n = "total" in [counter]')
    name = N_NAMES[options.n]
    if counts.inactive and options.n != "total":
        name = name.replace("parameters", "parameters that a token uses", 1)
    return by_name[options.n], name
