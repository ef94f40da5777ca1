"""``backtest``: hold out the largest budgets, and judge the fit by its predictions of them."""

from __future__ import annotations

from typing import Annotated

import typer

from flops_fit_core import numbers
from flops_fit_core.cli import arguments as args
from flops_fit_core.cli import laws
from flops_fit_core.cli.law_options import law_source
from flops_fit_core.cli.printing import print_json, print_notes, print_text
from flops_fit_core.cli.shared_options import share_options
from flops_fit_core.plugins.registry import Registry

MAX_POINTS = 8
"""The most held-out runs that are listed; --json has all."""


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(backtest)


@share_options(law_source)
def backtest(
    request: laws.LawRequest,
    registry: Registry,
    budgets: Annotated[int, typer.Option(help="How many of the largest budgets to hold out.")] = 1,
    above: Annotated[
        float | None, typer.Option(help="Hold out every run of more FLOPs than this instead.", metavar="C")
    ] = None,
    json: args.JsonOption = False,
) -> None:
    """Fit without the largest budgets, and report the error of the fit's predictions of them."""
    from flops_fit_core.fitting import backtest as hold_out
    from flops_fit_core.report.verdict import judge

    observations, law_fitter, reading = laws.read_observations(request, registry)
    tested = hold_out(law_fitter, observations, budgets, above)
    if json:
        shown = tested.model_dump(mode="json", exclude={"fit"})
        summary = {"mean_abs_error": tested.mean_abs_error, "bias": tested.bias}
        print_json({**shown, **summary, "inside": tested.inside, "with_interval": tested.with_interval})
        return
    print_notes(reading)
    for point in tested.held_out[:MAX_POINTS]:
        print_text(
            f"  {point.id}  C {numbers.scientific(point.flops)}  loss {point.loss:.4f}  predicted "
            f"{point.predicted}  {numbers.deviation(point.error)}"
        )
    if len(tested.held_out) > MAX_POINTS:
        print_text(f"  and {len(tested.held_out) - MAX_POINTS} more: --json lists them")
    print_text(
        f"{len(tested.held_out)} {'run' if len(tested.held_out) == 1 else 'runs'} held out above "
        f"C = {numbers.scientific(tested.above)}, {tested.fit.n_runs} "
        f"fitted by {tested.fit.fitter.name}: mean absolute relative error "
        f"{numbers.share(tested.mean_abs_error, 2)}, bias {numbers.deviation(tested.bias)}"
    )
    if tested.with_interval:
        print_text(
            f"{tested.inside} of {tested.with_interval} held-out losses lie inside the {tested.fit.level:.0%} "
            "interval of the law"
        )
    print_text(judge(tested).sentence, "bold")
