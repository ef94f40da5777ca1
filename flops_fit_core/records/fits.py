"""Observations, and fitted laws with their uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from flops_fit_core import numbers
from flops_fit_core.records.base import Positive, Record
from flops_fit_core.records.html import html_block, html_list, html_table, html_text
from flops_fit_core.records.runs import PluginChoice

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FAR = 101.0
"""Beyond this multiple of the largest budget, numbers have one digit: 100, and 1% for budgets that runs miss."""


class Observation(Record):
    """One trained model as data of a fit: a run's result, or a row of a table."""

    id: str
    """The run's id, or ``row 17``. Diagnostics use this name."""
    params: Positive
    tokens: Positive
    flops: Positive
    loss: Annotated[float, Field(allow_inf_nan=False)]
    """Held-out loss, nats per token. Positive, except for laws of a normalised loss."""
    loss_se: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Standard error of ``loss``, in its unit: of a forecast, or of a mean of evaluations. It does not include
    differences between runs, which a fit estimates. None if it is unknown or negligible."""
    budget: Positive | None = None
    """Nominal C of its IsoFLOP group; None without a group."""
    seed: int | None = None
    trajectory: str | None = None
    """Runs that share a trunk have correlated errors; this names the trunk."""
    unique_tokens: Positive | None = None
    """Distinct tokens among ``tokens``; None unless it is known to be less than ``tokens``."""
    inputs: dict[str, float] = {}
    """Further inputs of a law by name, such as ``experts``."""


class Interval(Record):
    """An estimate with an interval at the fit's level. Without an interval, both ends are None."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def cells(self, show: Callable[[float], str] = "{:.3f}".format) -> tuple[str, str, str]:
        """Value, low and high end as text."""
        low, high = ("–" if end is None else show(end) for end in (self.low, self.high))
        return show(self.value), low, high


def _with_ends(interval: Interval, show: Callable[[float], str], *, ends_first: bool) -> str:
    """``1.85M (1.20M–2.70M)``; with the ends first ``1M–3M (about 2M)``."""
    value, low, high = interval.cells(show)
    if interval.low is None:
        return f"about {value}" if ends_first else value
    return f"{low}–{high} (about {value})" if ends_first else f"{value} ({low}–{high})"


class Law(Record):
    """A fitted functional form: its name and its parameters by name."""

    name: str
    parameters: dict[str, float]


class LawMember(Record):
    """One law of an average of laws."""

    law: Law
    drift: float = 0.0
    """The fit weights each run by 1 / (1 + drift^2 ln(C_max / C)): 0 for equal weights."""
    weight: float
    """Share of this law in the average, by its backtests."""
    errors: tuple[float, ...] = ()
    """Root mean square error of ln L in each backtest, from the smallest to the largest fitted scale."""
    exponents: dict[str, Interval] = {}
    draws: dict[str, tuple[float, ...]] = {}
    """Its bootstrap draws, of a number in proportion to its weight."""


class NewRunError(Record):
    """Error of the loss of one further run, in ln L, besides the uncertainty of the law's draws.

    Its standard deviation is sqrt(sigma^2 + (drift_rate ln(C / C_max))^2), where C_max is the largest fitted C.
    Below C_max, the second term is 0.
    """

    sigma: float
    """Standard deviation between runs, seed noise included."""
    drift_rate: float
    """Error of the law's form per unit of ln(C / C_max), from backtests; 0 without any."""
    sigma_dof: float
    """Degrees of freedom behind ``sigma``."""
    drift_dof: float
    """Degrees of freedom behind ``drift_rate``; 0 without any backtest."""


class ProfileMinimum(Record):
    """The minimum of one IsoFLOP profile."""

    budget: Positive
    params: Positive
    tokens: Positive
    loss: Positive
    at_edge: bool
    """Whether the smallest or the largest size has the lowest loss: the minimum lies outside the grid, and the law
    does not use it."""
    n_runs: int
    curve: dict[str, float] = {}
    """Coefficients of the profile in ln N, to draw it."""


class Optimum(Record):
    """The optimal N and D for a budget C, and the expected loss."""

    flops: Positive
    params: Interval
    tokens: Interval
    loss: Interval
    """The law's loss, with the uncertainty of the law."""
    new_run: Interval | None = None
    """The same loss with an interval for one further run; None if the fit has no estimate of it."""
    notes: tuple[str, ...] = ()
    """For example how far C lies beyond the fitted budgets."""
    beyond: float | None = None
    """C over the largest fitted C if C lies beyond it; None otherwise, or if it is unknown."""
    outside: Literal["below", "above"] | None = None
    """Whether N lies below or above the trained sizes; None if it is among them, or if they are unknown."""

    @property
    def is_far(self) -> bool:
        """Whether C is more than 100 times the largest fitted C: numbers are orders of magnitude."""
        return self.beyond is not None and self.beyond > FAR

    def __str__(self) -> str:
        """The notes, and N, D and L with their intervals. With one digit, after the interval, if C is far."""
        parts = [
            f"{name} {_with_ends(interval, show, ends_first=self.is_far)}"
            for name, interval, show in self._quantities()
        ]
        return "\n".join([*self.notes, f"C {numbers.scientific(self.flops)}: {', '.join(parts)}"])

    def _repr_html_(self) -> str:
        """For notebooks: N, D and L with their intervals. With one digit, after the interval, if C is far."""
        cells = [(name, *interval.cells(show)) for name, interval, show in self._quantities()]
        headings: tuple[str, ...] = ("", "estimate", "low", "high")
        if self.is_far:
            headings = ("", "low", "high", "estimate, order of magnitude")
            cells = [(name, low, high, f"about {value}") for name, value, low, high in cells]
        title = f"Optimum for C = {numbers.scientific(self.flops)} FLOPs"
        return html_block(title, html_list(self.notes), html_table(headings, cells, (True,)))

    def _quantities(self) -> list[tuple[str, Interval, Callable[[float], str]]]:
        """Name, interval and format of each quantity."""
        digits = 1 if self.is_far else 3
        show_count, show_loss = partial(numbers.count, digits=digits), f"{{:.{1 if self.is_far else 4}f}}".format
        losses = [("L", self.loss), *([] if self.new_run is None else [("L of a new run", self.new_run)])]
        return [
            ("N_opt", self.params, show_count),
            ("D_opt", self.tokens, show_count),
            *((name, interval, show_loss) for name, interval in losses),
        ]


class Diagnostic(Record):
    """A problem or property of a fit, in plain words, with advice."""

    code: str
    message: str
    severity: Literal["note", "warning"] = "warning"


class LawFit(Record):
    """A fitted law with its method, its data range and its uncertainty."""

    fitter: PluginChoice
    law: Law
    exponents: dict[str, Interval]
    """``a``: N_opt ~ C^a. ``b``: D_opt ~ C^b."""
    level: Annotated[float, Field(gt=0, lt=1)]
    """Level of all intervals, 0.9 for 90%."""
    objective: float
    n_runs: int
    excluded: dict[str, str] = {}
    """Observation id -> the reason why the fit did not use it."""
    diagnostics: tuple[Diagnostic, ...] = ()
    minima: tuple[ProfileMinimum, ...] = ()
    draws: dict[str, tuple[float, ...]] = {}
    """Bootstrap draws of each parameter in ``law.parameters``."""
    members: tuple[LawMember, ...] = ()
    """The laws of an average of laws, which then has no ``draws`` and no parameters."""
    new_run: NewRunError | None = None
    """Error of a further run; None if it is unknown."""
    failed_draws: int = 0
    flops_range: tuple[Positive, Positive]
    """Smallest and largest C among the fitted runs."""
    params_range: tuple[Positive, Positive] | None = None
    """Smallest and largest N among the fitted runs; None if unknown."""
    flops_per_token: tuple[tuple[Positive, Positive], ...] = ()
    """(N, C / D) along the curve on which an optimum must lie; empty if C / D is 6 N to within 1%."""
    flops_per_token_modes: tuple[tuple[float, ...], ...] = ()
    """Directions in which that curve is uncertain: changes of ln(C / D) at its N. Empty if the curve is exact."""
    flops_per_token_draws: tuple[tuple[float, ...], ...] = ()
    """For each mode, its multiple in every bootstrap draw."""
    params_name: str = "as given"
    flops_name: str = "as given"
    unit: str = "tokens"
    eval_set: str | None = None
    """Name of the held-out set with the fitted losses; None for the dataset's main set."""
    seed: int = 0

    @property
    def draw_count(self) -> int:
        """Number of bootstrap draws, of all laws together."""
        tables = [member.draws for member in self.members] or [self.draws]
        return sum(len(next(iter(table.values()), ())) for table in tables)

    def _repr_html_(self) -> str:
        """For notebooks: exponents, parameters, conventions and diagnostics."""
        powers = {"a": "a, N_opt ~ C^a", "b": "b, D_opt ~ C^b"}
        rows = [(powers.get(name, name), *interval.cells()) for name, interval in self.exponents.items()]
        rows += [(name, f"{value:.4g}", "–", "–") for name, value in self.law.parameters.items()]
        level = (
            f"{self.level:.0%} intervals. "
            if any(item.low is not None for item in self.exponents.values())
            else ""
        )
        on_set = f" on {self.eval_set}" if self.eval_set else ""
        low, high = map(numbers.scientific, self.flops_range)
        conventions = (
            f"{level}N: {self.params_name}. C: {self.flops_name}. D: {self.unit}. L: nats per "
            f"{self.unit.removesuffix('s')}{on_set}. C of the runs: {low} to {high}."
            f"{f' Runs not used: {len(self.excluded)}.' if self.excluded else ''}"
        )
        members = html_table(
            ("law", "weight", "a", "b"),
            [
                (member.law.name, f"{member.weight:.0%}", *(_value(member.exponents.get(key)) for key in "ab"))
                for member in self.members
            ],
            (True,),
        )
        return html_block(
            f"{self.law.name}, fitted by {self.fitter.name} to {self.n_runs} runs",
            html_list(item.message for item in self.diagnostics if item.severity == "warning"),
            html_table(("", "estimate", "low", "high"), rows, (True,)),
            members if self.members else "",
            html_text(conventions),
        )

    @property
    def observations(self) -> tuple[Observation, ...]:
        """The runs behind the fit, for :meth:`plot`; empty for a fit from a file. No part of the record."""
        observations: tuple[Observation, ...] = self.__dict__.get("_observations", ())
        return observations

    def with_observations(self, observations: Iterable[Observation]) -> Self:
        """The same fit with its runs, for :meth:`plot`. They are neither stored nor compared."""
        fit = self.model_copy()
        fit.__dict__["_observations"] = tuple(observations)
        return fit

    def plot(
        self,
        kind: str | None = None,
        *,
        observations: Iterable[Observation] | None = None,
        ax: Any = None,
        style: str | None = None,
        width: str | None = None,
        path: str | Path | None = None,
    ) -> Figure:
        """A figure of the fit, which notebooks display.

        Args:
            kind: ``isoflop``, ``optimum``, ``tokens-per-param``, ``frontier``, ``contours``, ``predicted``,
                ``residuals`` or ``draws``. Default: ``isoflop``, or ``optimum`` for a fit without runs.
            observations: The runs; by default :attr:`observations`.
            ax: Axes of matplotlib to draw into; a pair for ``optimum``, and for ``isoflop`` with its residuals.
            style: ``light``, ``dark``, or None for the background of your matplotlib style.
            width: ``column`` (3.3 in) or ``page`` (7 in); None for ``page``, or for your ``figure.figsize``.
            path: Also save the figure there: PNG, SVG or PDF.

        Raises ConfigError for an unknown kind, style or width, FitError if the fit lacks what the kind shows.
        """
        # By name: records are below all other modules, and importing them must not import matplotlib.
        plot_fit: Any = import_module("flops_fit_core.report.figures.law").plot_fit
        runs = self.observations if observations is None else tuple(observations)
        figure: Figure = plot_fit(self, kind, runs, ax=ax, style=style, width=width, path=path)
        return figure

    @model_validator(mode="after")
    def _draws_have_equal_lengths(self) -> Self:
        lengths = {len(column) for column in (*self.draws.values(), *self.flops_per_token_draws)}
        if self.members:
            lengths |= {self.draw_count}
        if len(lengths) > 1:
            raise ValueError(f"the bootstrap draws have different lengths: {sorted(lengths)}")
        modes = {len(mode) for mode in self.flops_per_token_modes}
        if modes and modes != {len(self.flops_per_token)}:
            raise ValueError("flops_per_token_modes must have a value for each point of flops_per_token")
        if len(self.flops_per_token_draws) != len(self.flops_per_token_modes):
            raise ValueError("flops_per_token_draws must have a column for each of flops_per_token_modes")
        return self


def _value(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.value:.3f}"
