"""Tables, the figure and the page of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_core.errors import FitError
from flops_fit_core.study.figures import figure_data
from flops_fit_core.study.law import StudyLaw

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
