"""Print the answer of a study: minima, exponents, predictions, diagnostics."""

from __future__ import annotations

from flops_fit_core.cli.printing import print_diagnostics, print_table, print_text
from flops_fit_core.errors import FitError
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.records import LawFit
from flops_fit_core.study import Study


def print_summary(study: Study) -> None:
    """Print the answer. Raises FitError if no law can be fitted."""
    print_law(study.fit)
    if line := describe_six_nd(study, study.fitter):
        print_text(line)
    print_table(study.table())
    print_diagnostics(study.fit)
    if study.isoflop is not None:
        print_comparison(study.fit, study.isoflop)
    elif study.no_isoflop:
        print_text(f"No IsoFLOP law of the same runs, for comparison: {study.no_isoflop.splitlines()[0]}")


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
