"""How far to trust a law: checks of its shape, its predictions, its methods and its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flops_fit_core import numbers
from flops_fit_core.errors import FitError
from flops_fit_core.fitting import disagreement, optimum
from flops_fit_core.records import LawFit, Optimum
from flops_fit_core.report.page.content import ReportContent

Status = Literal["good", "caution", "unknown"]

_SHAPE = ("lack-of-fit", "not-converged", "ill-conditioned", "no-irreducible-loss", "one-ratio")
_GRID = ("minimum-at-edge", "outside-sizes", "few-sizes")
_FAR = 100.0
"""Factor beyond the largest budget from which on a prediction is no guide."""


_MISS = 1.5
"""A backtest misses if its mean absolute error is this many times the scatter of runs; noise alone gives 0.8."""


@dataclass(frozen=True)
class Check:
    """A reason to trust the answer, or not to."""

    title: str
    status: Status
    text: str


def list_checks(content: ReportContent) -> list[Check]:
    """The checks of a law, in the order in which a reader needs them; none without a law."""
    fit, answer = content.fit, content.answer
    if fit is None or answer is None:
        return []
    checks = [
        _check_shape(fit),
        _check_backtest(content, fit),
        _check_methods(content, fit, answer),
        _check_grid(content, fit),
        _check_distance(fit, answer),
        _check_runs(content, fit),
    ]
    return [check for check in checks if check is not None]


def verdict(checks: list[Check]) -> str:
    """The checks in a sentence."""
    cautions = [check.title.lower() for check in checks if check.status == "caution"]
    unknown = [check.title.lower() for check in checks if check.status == "unknown"]
    if not cautions and not unknown:
        return "All checks pass."
    passed = sum(check.status == "good" for check in checks)
    parts = [f"{passed} of {len(checks)} checks pass."]
    if cautions:
        parts.append(f"Take care with: {', '.join(cautions)}.")
    if unknown:
        parts.append(f"Not tested: {', '.join(unknown)}.")
    return " ".join(parts)


def _messages(fit: LawFit, codes: tuple[str, ...]) -> list[str]:
    return [item.message for item in fit.diagnostics if item.code in codes and item.severity == "warning"]


def _check_shape(fit: LawFit) -> Check:
    if problems := _messages(fit, _SHAPE):
        return Check("Shape of the law", "caution", _sentence(problems[0]))
    scatter = (
        f" Runs scatter by {numbers.short_share(fit.new_run.sigma)} about it." if fit.new_run is not None else ""
    )
    return Check("Shape of the law", "good", f"The law follows the losses of {fit.n_runs} runs.{scatter}")


def _check_backtest(content: ReportContent, fit: LawFit) -> Check:
    backtest = content.context.backtest
    if backtest is None or not backtest.held_out:
        return Check("Backtest", "unknown", "No budget can be held out for a test; train more budgets.")
    error, scatter = backtest.mean_abs_error, fit.new_run.sigma if fit.new_run is not None else None
    limit = _MISS * scatter if scatter else 0.02
    noise = f", and single runs scatter by {numbers.short_share(scatter)}" if scatter else ""
    text = (
        f"Fitted without the runs above C = {numbers.scientific(backtest.above)}, the law predicts their loss "
        f"with a mean error of {numbers.short_share(error)}{noise}."
    )
    if error > limit:
        return Check("Backtest", "caution", f"{text} It misses them: do not extrapolate far.")
    return Check("Backtest", "good", text)


def _check_methods(content: ReportContent, fit: LawFit, answer: Optimum) -> Check | None:
    if fit.fitter.name == "fitters/isoflop":
        return None
    isoflop = content.context.isoflop
    if isoflop is None:
        return Check(
            "Agreement of methods", "unknown", "IsoFLOP profiles of the runs give no law to compare with."
        )
    try:
        other = optimum(isoflop, answer.flops).params
        conflicts = disagreement(fit, isoflop, answer.flops)
    except FitError:
        return Check("Agreement of methods", "unknown", "The law of this fitter cannot be compared with profiles.")
    ratio = max(other.value / answer.params.value, answer.params.value / other.value)
    text = (
        f"At C = {numbers.scientific(answer.flops)}, IsoFLOP profiles give N = {numbers.count(other.value)}"
        f"{_span(other.low, other.high)}, a factor of {numbers.ratio(ratio)} from the law's "
        f"{numbers.count(answer.params.value)}."
    )
    if conflicts:
        return Check("Agreement of methods", "caution", f"{text} The intervals do not overlap: plan for both.")
    return Check("Agreement of methods", "good" if ratio < 2 else "caution", text)


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({numbers.count(low)} to {numbers.count(high)})"


def _check_grid(content: ReportContent, fit: LawFit) -> Check:
    if problems := _messages(fit, _GRID):
        rest = f" {len(problems) - 1} more warnings of this kind are below." if len(problems) > 1 else ""
        return Check("Range of sizes", "caution", _sentence(problems[0]) + rest)
    if fit.params_range is None:
        return Check("Range of sizes", "unknown", "The fit does not record the trained sizes.")
    low, high = (numbers.count(size) for size in fit.params_range)
    return Check(
        "Range of sizes",
        "good",
        f"Trained sizes reach from {low} to {high} parameters, on both sides of the optima.",
    )


def _check_distance(fit: LawFit, answer: Optimum) -> Check:
    factor = answer.flops / fit.flops_range[1]
    low, high = (numbers.scientific(flops) for flops in fit.flops_range)
    text = f"The runs cover C = {low} to {high} FLOPs. The answer lies {factor:.3g}x beyond them."
    if factor <= 1:
        text = f"The answer lies within the runs, C = {low} to {high} FLOPs."
    return Check("Extrapolation", "good" if factor <= _FAR / 10 + 1e-9 else "caution", text)


def _check_runs(content: ReportContent, fit: LawFit) -> Check | None:
    if not content.results:
        return None
    total = len(content.plan.runs) if content.plan is not None else len(content.results)
    completed = sum(result.status == "completed" for result in content.results)
    excluded = f" The fit leaves out {len(fit.excluded)}." if fit.excluded else ""
    text = f"{completed} of {total} runs completed.{excluded}"
    return Check("Runs", "good" if completed >= 0.9 * total else "caution", text)


def _sentence(message: str) -> str:
    text = message.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."
