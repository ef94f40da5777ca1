"""The loss as a function of ln N and ln D: laws with their parameters, stacks of draws, averages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats, Ints
from flops_fit_core.plugins.protocols import LossLaw
from flops_fit_core.plugins.registry.law_index import find_law, is_loss_law
from flops_fit_core.records import LawFit

AVERAGE = "average"
"""Name of the law of an average of laws."""
_STEP = 1e-30
Columns = Mapping[str, Floats]


class Surface(ABC):
    """The loss by ln N and ln D, for one or several rows of parameters."""

    rows: int

    @abstractmethod
    def loss(self, ln_params: Any, ln_tokens: Any) -> Any:
        """L of shape (rows, m), for arguments of shape (rows, m) or (1, m), real or complex."""

    @abstractmethod
    def take(self, rows: Ints) -> Surface:
        """The surface with these rows only; a surface with a single row is unchanged."""

    def slopes(self, ln_params: Floats, ln_tokens: Floats) -> tuple[Floats, Floats]:
        """Derivatives dL / d ln N and dL / d ln D, each of shape (rows, m), by complex steps."""
        by_params = np.imag(self.loss(ln_params + 1j * _STEP, ln_tokens)) / _STEP
        by_tokens = np.imag(self.loss(ln_params, ln_tokens + 1j * _STEP)) / _STEP
        return by_params, by_tokens

    def balance(self, ln_params: Floats, ln_tokens: Floats, tokens_per_size: Floats) -> Floats:
        """Ln of the loss that fewer tokens cost over the loss that a larger N gains, of shape (rows, m).

        Along a curve of constant C on which ln D falls by ``tokens_per_size`` per unit of ln N, it is 0 at the
        minimum of the loss and negative at smaller N, and nearly a straight line in ln N. NaN where the loss rises
        with N or with D.
        """
        by_params, by_tokens = self.slopes(ln_params, ln_tokens)
        with np.errstate(invalid="ignore", divide="ignore"):
            balance: Floats = np.log(-tokens_per_size * by_tokens) - np.log(-by_params)
        return balance


@dataclass(frozen=True)
class LawSurface(Surface):
    """A law with one value or several values of each parameter."""

    law: LossLaw
    values: Columns
    """Each parameter, shape (rows,)."""
    inputs: Mapping[str, float] = field(default_factory=dict)
    """Values of the law's further inputs. Without ``unique_tokens``, no token is repeated."""

    def __post_init__(self) -> None:
        missing = [
            name for name in self.law.inputs if name not in ("params", "tokens", "unique_tokens", *self.inputs)
        ]
        if missing:
            example = " ".join(f"--input {name}=..." for name in missing)
            raise FitError(f"the law also depends on {', '.join(missing)}: give their values, {example}")

    @property
    def rows(self) -> int:  # type: ignore[override]
        return len(next(iter(self.values.values())))

    def take(self, rows: Ints) -> Surface:
        if self.rows == 1:
            return self
        return replace(self, values={name: column[rows] for name, column in self.values.items()})

    def loss(self, ln_params: Any, ln_tokens: Any) -> Any:
        arrays = {"params": np.exp(ln_params), "tokens": np.exp(ln_tokens)}
        arrays["unique_tokens"] = arrays["tokens"]
        arrays |= {name: np.full((1, 1), value) for name, value in self.inputs.items()}
        columns = {name: value[:, None] for name, value in self.values.items()}
        return self.law.loss(*(arrays[name] for name in self.law.inputs), **columns)


@dataclass(frozen=True)
class Stack(Surface):
    """The rows of several surfaces, in order."""

    parts: Sequence[Surface]

    @property
    def rows(self) -> int:  # type: ignore[override]
        return sum(part.rows for part in self.parts)

    def take(self, rows: Ints) -> Surface:
        ends = np.cumsum([part.rows for part in self.parts])
        parts = [
            part if part.rows == 1 else part.take(chosen - (end - part.rows))
            for part, end in zip(self.parts, ends, strict=True)
            if len(chosen := rows[(rows >= end - part.rows) & (rows < end)])
        ]
        return Stack(parts)

    def loss(self, ln_params: Any, ln_tokens: Any) -> Any:
        losses, first = [], 0
        for part in self.parts:
            rows = slice(first, first + part.rows)
            first += part.rows
            losses.append(part.loss(*(x[rows] if len(x) > 1 else x for x in (ln_params, ln_tokens))))
        return np.concatenate(losses)


@dataclass(frozen=True)
class Average(Surface):
    """The weighted geometric mean of surfaces with a single row."""

    parts: Sequence[Surface]
    weights: Sequence[float]
    rows: int = 1

    def take(self, rows: Ints) -> Surface:
        return self

    def loss(self, ln_params: Any, ln_tokens: Any) -> Any:
        total: Any = 0.0
        for part, weight in zip(self.parts, self.weights, strict=True):
            total = total + weight * np.log(part.loss(ln_params, ln_tokens))
        return np.exp(total)


def point_surface(fit: LawFit, inputs: Mapping[str, float] | None = None) -> Surface:
    """The surface of a fit. Raises FitError for a law of the optimum only (isoflop, envelope)."""
    if fit.law.name == AVERAGE:
        parts = [_surface(member.law.name, member.law.parameters, inputs) for member in fit.members]
        return Average(parts, [member.weight for member in fit.members])
    return _surface(fit.law.name, fit.law.parameters, inputs)


def drawn_surface(fit: LawFit, inputs: Mapping[str, float] | None = None) -> Surface | None:
    """The surfaces of a fit's draws, one per row; None without draws."""
    if not fit.draw_count:
        return None
    if fit.law.name == AVERAGE:
        drawn = [member for member in fit.members if member.draws]
        return Stack([_surface(member.law.name, member.draws, inputs) for member in drawn])
    return _surface(fit.law.name, fit.draws, inputs)


def has_surface(fit: LawFit) -> bool:
    """Whether the law gives the loss at every N and D."""
    return fit.law.name == AVERAGE or is_loss_law(fit.law.name)


def has_optimum(fit: LawFit) -> bool:
    """Whether the core can compute the optimum without the fitter: a law of N and D, or a law of the optimum."""
    if fit.law.name in ("envelope", "isoflop") or fit.members:
        return True
    return is_loss_law(fit.law.name) and {"params", "tokens"} <= set(find_law(fit.law.name).inputs)


def _surface(name: str, parameters: Mapping[str, Any], inputs: Mapping[str, float] | None) -> Surface:
    if not is_loss_law(name) and name in ("isoflop", "envelope"):
        raise FitError(f"law {name!r} gives the optimum only, not the loss at other N and D: use fitter average")
    law = find_law(name)
    expected = {parameter.name for parameter in law.parameters}
    if missing := expected - set(parameters):
        raise FitError(f"the fit lacks {', '.join(sorted(missing))} of its law {name!r}: fit the runs again")
    values = {key: np.atleast_1d(np.asarray(parameters[key], dtype=float)) for key in expected}
    return LawSurface(law, values, dict(inputs or {}))
