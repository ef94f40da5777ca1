"""``tune``: find the learning rate with short runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import console, print_json, print_table, print_text, say
from flops_fit_core.errors import ConfigError, UserError
from flops_fit_core.plugins.registry import Registry

if TYPE_CHECKING:
    from flops_fit_core.plugins.protocols import Logger
    from flops_fit_core.report import DataTable
    from flops_fit_core.study import Study
    from flops_fit_core.tuning import LearningRateSweep, Tuning

DIGITS = 3
"""Significant digits of the value written: a learning rate is not known better."""


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(tune)


def tune(
    source: args.SourceArgument,
    rates: Annotated[
        int, typer.Option(help="How many learning rates, a factor 2 apart, around the present one.")
    ] = 5,
    sizes: Annotated[
        str | None,
        typer.Option(help="Sizes to train: --sizes 16,32. By default two of the plan's.", metavar="A,B"),
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="D of every run; by default the median of the smallest budget's.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each; from 3 on, the interval is over seeds.")] = 1,
    out: args.OutOption = None,
    overrides: args.SetOption = None,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the experiment file as it is.")] = False,
    json: args.JsonOption = False,
) -> int:
    """Find the learning rate with a few short runs, and write it into the experiment file."""
    from flops_fit_core.study.directory import StudyFolder
    from flops_fit_core.tuning import LearningRateSweep
    from flops_fit_core.tuning import tune as train

    registry = args.registry_for(source, plugin, without)
    study = args.planned(source, registry, out, overrides, {})
    assert study.experiment is not None
    lr_sweep = LearningRateSweep(
        study.experiment, study.plan, sizes=_sizes(sizes), tokens=tokens, seeds=_first(seeds, study)
    )
    folder = StudyFolder(study.folder.path / "tune")
    _announce(lr_sweep, rates, study, folder.path)
    tuning = train(lr_sweep, registry, folder, rates=rates, loggers=_progress)
    value = float(f"{tuning.best.value:.{DIGITS}g}") if tuning.best else None
    written = False
    if value is not None and not dry_run:
        written = _write(source, study, tuning, value, registry)
    if json:
        print_json({**tuning.model_dump(mode="json"), "value": value, "written": written})
    else:
        _print(tuning, lr_sweep, source)
    if written:
        _report_new_runs(study, tuning, value)
    failed = any(run.status == "failed" for run in tuning.runs)
    return 1 if failed or value is None else 0


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"--sizes {text}: write whole numbers with commas, such as --sizes 16,32") from None


def _first(count: int, study: Study) -> list[int]:
    """The experiment's seeds, then more."""
    if count < 1:
        raise ConfigError(f"--seeds {count}: there must be at least one")
    assert study.experiment is not None
    seeds = list(study.experiment.sweep.seeds)
    more = (seed for seed in range(count + len(seeds)) if seed not in seeds)
    return [*seeds, *more][:count]


def _progress(study: Study) -> list[Logger]:
    from flops_fit_core.cli.progress import SweepProgress

    return [SweepProgress(console(error=True), {result.id for result in study.results if result.is_finished})]


def _announce(lr_sweep: LearningRateSweep, rates: int, study: Study, folder: Path) -> None:
    from flops_fit_core.report import numbers

    sizes = ", ".join(str(one.size) for one in lr_sweep.measured)
    flops = rates * lr_sweep.flops
    say(
        f"{lr_sweep.option.name}, now {lr_sweep.option.value:.4g}: {rates} values a factor of 2 apart, "
        f"sizes {sizes}, D = {numbers.count(lr_sweep.tokens)} {study.plan.unit}, "
        f"{_counted(len(lr_sweep.seeds), 'seed')}: {rates * len(lr_sweep.measured) * len(lr_sweep.seeds)} runs, "
        f"{numbers.scientific(flops)} FLOPs ({flops / study.plan.flops:.0%} of the plan's), in {folder}"
    )


def _write(source: Path, study: Study, tuning: Tuning, value: float, registry: Registry) -> bool:
    """Write the value into the experiment file if the file chooses the plugins for which it was tuning."""
    from flops_fit_core.config import load_experiment
    from flops_fit_core.tuning import write_value

    table, _, option = tuning.option.partition(".")
    if source.is_dir():
        say(
            f"a study's folder keeps the options of its runs: write {tuning.option} = {value} into its experiment "
            f"file, or run with --set {tuning.option}={value}"
        )
        return False
    try:
        own, tuned = load_experiment(source, registry), study.experiment
        same = tuned is not None and all(
            getattr(own, kind).name == getattr(tuned, kind).name for kind in ("recipe", "optimizer")
        )
        free = table == "optimizer" or own.optimizer.unset("lr")
    except UserError:
        same = free = False
    if not (same and free):
        say(
            f"{source} without --set is another experiment, so it is unchanged. Write {tuning.option} = {value} "
            f"into the right file"
        )
        return False
    write_value(source, table, option, value)
    say(f"wrote {tuning.option} = {value} into {source}")
    return True


def _report_new_runs(study: Study, tuning: Tuning, value: float | None) -> None:
    done = sum(result.is_finished for result in study.results)
    if done and value != tuning.before:
        say(
            f"a new learning rate makes new runs: the {done} finished runs with "
            f"{tuning.option} = {tuning.before:.4g} stay in the store, and 'flops-fit run' now trains new ones"
        )


def _print(tuning: Tuning, lr_sweep: LearningRateSweep, source: Path) -> None:
    from flops_fit_core.report import numbers
    from flops_fit_core.report.datatable import singular

    print_table(_table(tuning))
    print_text(
        f"Nats per {singular(lr_sweep.plan.unit)}, D = {numbers.count(lr_sweep.tokens)} {lr_sweep.plan.unit}, "
        f"{_counted(len(lr_sweep.seeds), 'seed')}; * the lowest of a size."
    )
    for size in tuning.sizes:
        if size.value is not None and size.edge is None:
            print_text(f"  size {size.size}: best at {size.value}")
    for note in tuning.notes:
        print_text(f"! {note}")
    if tuning.best is not None:
        level = "" if tuning.best.low is None else f" ({tuning.level:.0%} interval)"
        print_text(f"Best {tuning.option}: {tuning.best}{level}; it was {tuning.before:.4g}")
        return
    for side, where, value in (("low", "below", tuning.values[0]), ("high", "above", tuning.values[-1])):
        sizes = [str(size.size) for size in tuning.sizes if size.edge == side]
        if sizes:
            print_text(
                f"! for size {', '.join(sizes)} the best value lies {where} the values tried, {where} "
                f"{value:.4g}. Nothing is written. To extend the sweep: flops-fit tune {source} "
                f"--set {tuning.option}={value:.4g}"
            )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _table(tuning: Tuning) -> DataTable:
    """Loss by value and size; a star marks the lowest of each size."""
    from flops_fit_core.report import DataTable, numbers
    from flops_fit_core.report.datatable import Column, Row

    losses = {
        (size.params, value): tuning.loss(size.params, value) for size in tuning.sizes for value in tuning.values
    }

    def cells(params: int) -> Callable[[Row], str]:
        finite = [loss for (size, _), loss in losses.items() if size == params and loss is not None]

        def cell(row: Row) -> str:
            loss = losses[params, row["value"]]
            return numbers.loss(loss) + (" *" if loss is not None and loss == min(finite) else "  ")

        return cell

    return DataTable(
        title=f"Held-out loss by {tuning.option}",
        caption="",
        fields=("value",),
        rows=tuple({"value": value} for value in tuning.values),
        columns=(
            Column(tuning.option, lambda row: f"{row['value']:.4g}"),
            *(
                Column(f"{size.size} (N {numbers.count(size.params)})", cells(size.params))
                for size in tuning.sizes
            ),
        ),
    )
