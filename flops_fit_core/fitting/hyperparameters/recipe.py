"""The ``[recipe]`` table of an experiment file for a fitted law."""

from __future__ import annotations

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
    (low_n, high_n), (low_d, high_d) = (
        (min(values), max(values))
        for values in ([cell.params for cell in fit.cells], [cell.tokens for cell in fit.cells])
    )
    origin = (
        f"# Fitted to {fit.n_runs} runs in {len(fit.cells)} pairs of N ({low_n:.3g} to {high_n:.3g}) and "
        f"D ({low_d:.3g} to {high_d:.3g})"
    )
    lines = ["[recipe]", origin]
    for name, value in recipe_options(fit).items():
        lines.append(f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value!r}")
    return "\n".join(lines) + "\n"


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
