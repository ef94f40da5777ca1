"""``compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli import law_options as fitting
from flops_fit_core.cli import laws
from flops_fit_core.cli.printing import print_error, print_json, print_notes, print_table, print_text
from flops_fit_core.errors import ConfigError, FitError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.report import describe_comparison, gains_table
from flops_fit_core.study.comparison import Recipe, compare_recipes

if TYPE_CHECKING:
    from flops_fit_core.fitting import Comparison

NOT_PROMOTED, NO_ANSWER = 3, 4
"""Exit statuses with ``--gate``. 0: B is promoted. 1 and 2: as for other commands."""


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(compare)


def compare(
    first: Annotated[
        Path,
        typer.Argument(
            help=f"The recipe to beat: a study's folder, an experiment file, or {fitting.TABLE}.", metavar="A"
        ),
    ],
    second: Annotated[Path, typer.Argument(help="The new recipe, as A.", metavar="B")],
    flops: Annotated[
        list[float] | None,
        typer.Option(
            "--flops", help="Budget of B; by default the largest that both have. Repeatable.", metavar="C"
        ),
    ] = None,
    gate: Annotated[
        float | None,
        typer.Option(
            help="Exit with 0 if the lower 95% bound of the gain is above this, with 3 if not, and with 4 if the "
            "runs give no answer.",
            metavar="GAIN",
        ),
    ] = None,
    filter_a: fitting.FilterAOption = None,
    filter_b: fitting.FilterBOption = None,
    columns: fitting.ColumnOption = None,
    filters: fitting.FilterOption = None,
    units: fitting.UnitsOption = None,
    decimal: fitting.DecimalOption = None,
    best_of: fitting.BestOfOption = None,
    eval_set: fitting.EvalSetOption = None,
    allow_differences: fitting.AllowDifferencesOption = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the gain against C, as PNG, SVG or PDF.", metavar="FILE")
    ] = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> int:
    """Compare two recipes: the compute-equivalent gain of B over A, with an interval."""
    if gate is not None and not 0 < gate < float("inf"):
        raise ConfigError(f"--gate {gate}: write a gain above 0, such as --gate 1.02")
    request = laws.LawRequest(
        first, None, (), columns or (), filters or (), eval_set, units or (), decimal, best_of
    )
    registry = args.registry_for(first, plugin, disabled)
    recipe_a = read_recipe(request, filter_a or (), registry)
    second_request = replace(request, source=second)
    recipe_b = read_recipe(second_request, filter_b or (), args.registry_for(second, plugin, disabled))
    try:
        comparison = compare_recipes(
            recipe_a,
            recipe_b,
            flops or (),
            gate=1.0 if gate is None else gate,
            allow_differences=allow_differences,
            registry=registry,
        )
    except FitError as error:
        if gate is None:
            raise
        print_error(str(error))
        return NO_ANSWER
    if plot is not None:
        write_plot(comparison, plot)
    if json:
        verdict = {"answered": comparison.answered, "promoted": comparison.promoted}
        print_json({**comparison.model_dump(mode="json"), **verdict})
    else:
        print_table(gains_table(comparison))
        for line in describe_comparison(comparison, with_gate=gate is not None):
            print_text(line)
        print_notes(comparison.diagnostics)
    if gate is None:
        return 0
    if not comparison.answered:
        return NO_ANSWER
    return 0 if comparison.promoted else NOT_PROMOTED


def read_recipe(request: laws.LawRequest, filters: Sequence[str], registry: Registry) -> Recipe:
    """A study or a table as one side of the comparison. Raises ConfigError and FitError."""
    name = " ".join([str(request.source), *filters])
    request = replace(request, filters=(*request.filters, *filters))
    if request.is_table(registry):
        table = laws.read_request_table(request, registry)
        return Recipe(name, table.observations, diagnostics=table.diagnostics)
    study = laws.open_request_study(request, registry)
    return replace(study.recipe(), name=name)


def write_plot(comparison: Comparison, path: Path) -> None:
    """Save the figure. Raises ConfigError for a file of another kind."""
    from flops_fit_core.report import gain_figure
    from flops_fit_core.report.figures import without_latex

    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {path}: write the name of a .png, .svg or .pdf file")
    with without_latex():
        gain_figure(comparison).savefig(path, dpi=200)
