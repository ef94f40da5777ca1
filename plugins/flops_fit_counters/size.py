"""Conventions for N."""

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
    """The convention for N."""

    n: Literal["matmul", "total", "non-embedding"] = "matmul"
    """N to count and report. ``matmul``: all parameters except lookup tables. For MoE models, ``matmul`` and
    ``non-embedding`` count active parameters."""


def params(options: CounterOptions, model: CounterInput) -> tuple[int, str]:
    """N by the option's convention, and its name. Inactive experts count in ``total`` only.

    Raises ConfigError for a model without such parameters.
    """
    counts = model.parameters
    by_name = {"matmul": counts.matmul, "total": counts.total, "non-embedding": counts.non_embedding}
    if by_name[options.n] < 1:
        raise ConfigError(f'model {model.family!r} has no {N_NAMES[options.n]}: write n = "total" in [counter]')
    name = N_NAMES[options.n]
    if counts.inactive and options.n != "total":
        name = name.replace("parameters", "parameters that a token uses", 1)
    return by_name[options.n], name
