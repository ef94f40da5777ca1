"""The ``[recipe]`` table of an experiment file for a fitted law."""

from __future__ import annotations

from flops_fit_core import numbers
from flops_fit_core.fitting.hyperparameters.diagnostics import count_pairs
from flops_fit_core.fitting.hyperparameters.records import HyperparameterLaw, LrBatchFit

DIGITS = 6
"""Significant digits of exponents and factors. The factor is that at N = D = 1, so rounded exponents would shift
the values at the real N and D; the factor is computed from the rounded exponents."""


def recipe_options(fit: LrBatchFit) -> dict[str, str | float]:
    """The options of recipe ``power-law`` for a fit."""
    options: dict[str, str | float] = {"name": "power-law", "n": fit.n}
    if fit.lr is not None:
        options |= _law_options("lr", fit.lr, fit.center)
    if fit.batch is not None:
        options |= _law_options("batch", fit.batch, fit.center)
    elif fit.fixed_batch is not None:
        options["batch_scale"] = _round(fit.fixed_batch)
    return options


def recipe_table(fit: LrBatchFit) -> str:
    """The table as TOML, with a comment for the origin."""
    params, tokens = ([getattr(cell, name) for cell in fit.cells] for name in ("params", "tokens"))
    origin = (
        f"# Fitted to {fit.n_runs} runs in {count_pairs(len(fit.cells))}: N {_range(params)}, D {_range(tokens)}"
    )
    lines = ["[recipe]", origin]
    for name, value in recipe_options(fit).items():
        lines.append(f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value!r}")
    return "\n".join(lines) + "\n"


def _range(values: list[float]) -> str:
    low, high = numbers.count(min(values)), numbers.count(max(values))
    return low if low == high else f"{low} to {high}"


def _law_options(name: str, law: HyperparameterLaw, center: tuple[float, float]) -> dict[str, float]:
    params, tokens = _round(law.params.value), _round(law.tokens.value)
    scale = law.center.value / (center[0] ** params * center[1] ** tokens)
    options = {f"{name}_scale": _round(scale)}
    if params:
        options[f"{name}_params"] = params
    if tokens:
        options[f"{name}_tokens"] = tokens
    return options


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
