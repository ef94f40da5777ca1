"""What was fitted, and how sure it is."""

from __future__ import annotations

from typing import Literal

from flops_fit_core.records.base import Positive, Record
from flops_fit_core.records.runs import PluginChoice


class Observation(Record):
    """One trained model as a fit sees it, whoever trained it: a run's result or a row of a table."""

    id: str
    """The run's id, or ``row 17``: how diagnostics name it."""
    params: Positive
    tokens: Positive
    flops: Positive
    loss: Positive
    """Held-out loss, nats per token."""
    budget: Positive | None = None
    """Nominal C of its IsoFLOP group, where there is one."""
    seed: int | None = None
    trajectory: str | None = None
    """Runs that share a trunk have correlated errors; this names the trunk."""
    unique_tokens: Positive | None = None
    """Different tokens among those trained on; None where it is not known to be less than ``tokens``."""


class Interval(Record):
    """An estimate with the interval at the fit's level. No interval: both ends are None."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Law(Record):
    """A fitted functional form: its name and its parameters by name."""

    name: str
    parameters: dict[str, float]


class ProfileMinimum(Record):
    """The minimum of one IsoFLOP profile."""

    budget: Positive
    params: Positive
    tokens: Positive
    loss: Positive
    at_edge: bool
    """The lowest point is the smallest or the largest size: the minimum lies outside the grid, and the
    law does not use it."""
    n_runs: int
    curve: dict[str, float] = {}
    """Coefficients of the profile in ln N, for drawing it."""


class Optimum(Record):
    """What to train for a budget."""

    flops: Positive
    params: Interval
    tokens: Interval
    loss: Interval
    notes: tuple[str, ...] = ()
    """Such as how far this lies beyond the fitted budgets."""
    outside: Literal["below", "above"] | None = None
    """On which side of the trained sizes N lies; None where it is among them, or where they are not known."""


class Diagnostic(Record):
    """Something about a fit that a person should know, in plain words, with what to do about it."""

    code: str
    message: str
    severity: Literal["note", "warning"] = "warning"


class LawFit(Record):
    """A fitted law, how it was fitted, and how sure it is."""

    fitter: PluginChoice
    law: Law
    exponents: dict[str, Interval]
    """``a``: N_opt ~ C^a. ``b``: D_opt ~ C^b."""
    level: float
    """Of all intervals, 0.9 for 90%."""
    objective: float
    n_runs: int
    excluded: dict[str, str] = {}
    """Observation id -> why the fit did not use it."""
    diagnostics: tuple[Diagnostic, ...] = ()
    minima: tuple[ProfileMinimum, ...] = ()
    draws: dict[str, tuple[float, ...]] = {}
    """Bootstrap draws of the parameters, by the names in ``law.parameters``."""
    failed_draws: int = 0
    flops_range: tuple[float, float]
    """Smallest and largest C that was fitted."""
    params_range: tuple[float, float] | None = None
    """Smallest and largest N that was fitted; None where it is not known."""
    flops_per_token: tuple[tuple[Positive, Positive], ...] = ()
    """(N, C / D) along the curve by which an optimum is found; empty where it is 6 N to within 1%."""
    flops_per_token_modes: tuple[tuple[float, ...], ...] = ()
    """Directions in which that curve is uncertain: changes of ln(C / D) at its N. Empty where it is known."""
    flops_per_token_draws: tuple[tuple[float, ...], ...] = ()
    """For each of the modes, its multiple in every draw."""
    params_name: str = "as given"
    flops_name: str = "as given"
    unit: str = "tokens"
    eval_set: str | None = None
    """Name of the held-out set whose losses were fitted; None for the dataset's main one."""
    seed: int = 0
