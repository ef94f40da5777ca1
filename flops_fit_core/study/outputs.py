"""Tables, the figure and the page of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_core.errors import FitError
from flops_fit_core.records import RunResult
from flops_fit_core.records.html import html_block, html_text
from flops_fit_core.study.figures import figure_data
from flops_fit_core.study.law import StudyLaw
from flops_fit_core.study.states import count_states

if TYPE_CHECKING:
    from flops_fit_core.report import DataTable


def predictions(law: StudyLaw, budgets: Sequence[float] | None) -> DataTable:
    """The optimum of each budget; by default of the plan's budgets and of 10 and 100 times the largest."""
    from flops_fit_core.report import predictions_table

    planned = law.plan.budgets
    chosen = budgets or [*planned, 10 * planned[-1], 100 * planned[-1]]
    return predictions_table(law.fit, [law.predict(flops) for flops in chosen])


def profile_minima(law: StudyLaw) -> DataTable:
    """The minima by the law; by a parabola in ln N if the law has none or cannot be fitted."""
    from flops_fit_core.fitting import profile_minima as find_minima
    from flops_fit_core.report import minima_table
    from flops_fit_core.report.datatable import conventions
    from flops_fit_core.report.tables import table_of_minima

    try:
        if law.fit.minima:
            return minima_table(law.fit)
    except FitError:
        pass  # profiles need no law
    minima, diagnostics = find_minima(law.observations)
    caption = conventions(law.plan.params_name, law.plan.flops_name, law.plan.unit, law.eval_set)
    return table_of_minima(minima, caption, diagnostics)


def study_html(law: StudyLaw, results: Sequence[RunResult], folder: str) -> str:
    """A study for notebooks: the runs by state, failures, and the answer or the reason why there is none."""
    from flops_fit_core.report import exponents_line
    from flops_fit_core.report.run_errors import describe_failures

    states = {state: count for state, count in count_states(law.plan, results).items() if count}
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    title = f"{law.plan.name}: {counts} of {len(law.plan.runs)} runs"
    failures = "".join(map(html_text, describe_failures(results, folder)))
    try:
        answer = html_text(exponents_line(law.fit)) + predictions(law, None)._repr_html_()
    except FitError as error:
        answer = html_text(f"no law yet: {str(error).partition(chr(10))[0]}")
    return html_block(title, failures, answer, html_text(folder))


def write_page(law: StudyLaw, study_folder: Path, folder: Path) -> list[Path]:
    """Write figures, tables and the page into ``folder``. Returns the files, the page first."""
    from flops_fit_core.report import write_report

    return write_report(
        folder,
        observations=law.observations,
        fit=law.fit,
        optimum=law.predict,
        results=law.results.planned,
        plan=law.plan,
        figures=figure_data(law, study_folder),
    )
