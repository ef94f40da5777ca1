"""Print the answer of a fit, and its explanation: laws, minima, exponents, parameters, diagnostics."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from flops_fit_core.cli.printing import print_answer, print_diagnostics, print_table, print_text
from flops_fit_core.errors import FitError
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.records import LawFit, Optimum
from flops_fit_core.report.answer import Answer
from flops_fit_core.study import Study

READ = "columns"
"""Code of the notes about how a table was read; the first one names its columns and counts its rows."""


def print_summary(study: Study, explain: bool = False) -> None:
    """Print the answer of a study, and its explanation. Raises FitError if no law can be fitted."""
    answer = study.answer()
    print_answer(answer)
    if explain:
        print_explanation(study.fit, answer.rows, study.isoflop, study.no_isoflop)


def answer_of_table(
    fit: LawFit, fitter: Fitter, isoflop: LawFit | None, source: str, explain: str | None = None
) -> Answer:
    """The answer of a fit to a table of runs.

    Args:
        fit: The fit, with the table's diagnostics.
        fitter: The fitter of ``fit``.
        isoflop: The IsoFLOP law of the same runs; None without one.
        source: The table, for the commands to type next.
        explain: The command that explains the fit; None for no pointers.
    """
    from flops_fit_core.fitting import disagreement, has_optimum
    from flops_fit_core.numbers import scientific
    from flops_fit_core.report.answer import order_diagnostics
    from flops_fit_core.study.outputs import find_optima

    low, high = fit.flops_range
    budgets = [minimum.budget for minimum in (isoflop or fit).minima] or [low, (low * high) ** 0.5, high]
    optima = find_optima(fit, fitter, [*budgets, 10 * high, 100 * high])
    disagreements = disagreement(fit, isoflop) if isoflop is not None and has_optimum(fit) else []
    diagnostics = order_diagnostics(disagreements, fit.diagnostics, isoflop.diagnostics if isoflop else ())
    title = title_of_table(fit, source)
    predict = f"flops-fit predict {quote(source)} --flops {scientific(100 * high)}"
    return Answer(
        title=title,
        fit=fit,
        optimum=optima[-2] if optima else None,
        rows=tuple(optima),
        isoflop=isoflop,
        diagnostics=tuple(item for item in diagnostics if item.message != title),
        pointers={"next": predict, "explain": explain} if explain else {},
    )


def title_of_table(fit: LawFit, source: str) -> str:
    """How the table was read: its columns, and the number of its rows."""
    return next((item.message for item in fit.diagnostics if item.code == READ), f"{source}   {fit.n_runs} runs")


def print_explanation(
    fit: LawFit, optima: Sequence[Optimum], isoflop: LawFit | None, no_isoflop: str = ""
) -> None:
    """Print a fit in full: its laws, predictions with intervals, diagnostics, and the IsoFLOP law."""
    from flops_fit_core.report import predictions_table

    print_law(fit)
    if optima:
        print_table(predictions_table(fit, optima))
    print_diagnostics(fit)
    if isoflop is not None:
        print_comparison(fit, isoflop)
    elif no_isoflop:
        print_text(f"No IsoFLOP law of the same runs, for comparison: {no_isoflop.splitlines()[0]}")


def print_law(fit: LawFit) -> None:
    """Print the minima of a law, its exponents and its parameters."""
    from flops_fit_core.fitting import parameter_intervals
    from flops_fit_core.report import exponents_line, laws_table, minima_table

    if fit.minima:
        print_table(minima_table(fit))
    print_text(exponents_line(fit))
    if fit.members:
        print_table(laws_table(fit))
        return
    parameters = ", ".join(f"{name} = {value}" for name, value in parameter_intervals(fit).items())
    print_text(f"Law {fit.law.name}: {parameters}")


def print_comparison(fit: LawFit, isoflop: LawFit) -> None:
    """Print the IsoFLOP law of the same runs, and whether the laws agree."""
    from flops_fit_core.fitting import disagreement, has_optimum
    from flops_fit_core.report import exponents, minima_table

    print_text("IsoFLOP profiles of the same runs, for comparison:")
    print_table(minima_table(isoflop))
    print_text(exponents(isoflop))
    print_diagnostics(isoflop)
    if has_optimum(fit):
        for diagnostic in disagreement(fit, isoflop):
            print_text(f"! {diagnostic.message}")


def describe_six_nd(study: Study, fitter: Fitter) -> str | None:
    """The exponents of the same runs with C = 6 N D; None if C is 6 N D already, or if no law can be fitted."""
    from flops_fit_core.fitting import recounted
    from flops_fit_core.report import exponents

    if study.plan.flops_name == "6 N D":
        return None
    try:
        law = study.fit_with(fitter, recounted(study.observations))
    except FitError:
        return None
    return f"With C counted as 6 N D: {exponents(law)}"
