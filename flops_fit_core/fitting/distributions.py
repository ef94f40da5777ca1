"""Quantiles and tail probabilities of Student's t, F, the normal and the binomial distribution.

They equal those of ``scipy.stats``, which is not used: its import takes most of the time of a short command.
"""

from __future__ import annotations

from typing import Any

from scipy import special


def t_quantile(probability: Any, dof: Any) -> Any:
    """The t with P(T <= t) = ``probability``."""
    return special.stdtrit(dof, probability)


def t_upper_quantile(probability: Any, dof: Any) -> Any:
    """The t with P(T > t) = ``probability``."""
    return -special.stdtrit(dof, probability)


def f_quantile(probability: Any, numerator_dof: Any, denominator_dof: Any) -> Any:
    """The f with P(F <= f) = ``probability``."""
    return special.fdtri(numerator_dof, denominator_dof, probability)


def f_tail(value: Any, numerator_dof: Any, denominator_dof: Any) -> Any:
    """P(F > value)."""
    return special.fdtrc(numerator_dof, denominator_dof, value)


def normal_quantile(probability: Any) -> Any:
    """The z with P(Z <= z) = ``probability``."""
    return special.ndtri(probability)


def binomial_tail(count: Any, trials: int, probability: float) -> Any:
    """P(X > count) for ``trials`` trials; 1 for a negative count."""
    return special.bdtrc(count, trials, probability) if count >= 0 else 1.0


def f_upper_quantile(probability: Any, numerator_dof: Any, denominator_dof: Any) -> Any:
    """The f with P(F > f) = ``probability``."""
    return special.fdtri(numerator_dof, denominator_dof, 1 - probability)
