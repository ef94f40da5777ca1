"""``tune``: find the learning rate with short runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flops_fit_core import numbers
from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_json, print_message, print_table, print_text
from flops_fit_core.errors import ConfigError, UserError
from flops_fit_core.plugins.registry import Registry

if TYPE_CHECKING:
    from flops_fit_core.report import DataTable
    from flops_fit_core.study import Study
    from flops_fit_core.tuning import LearningRateSweep, Tuning

DIGITS = 3
"""Significant digits of the value written; the estimate is not more precise."""


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(tune)


def tune(
    source: args.SourceArgument,
    rates: Annotated[
        int, typer.Option(help="Number of learning rates, a factor of 2 apart, around the present rate.")
    ] = 5,
    sizes: Annotated[
        str | None,
        typer.Option(help="Sizes to train: --sizes 16,32. By default two sizes of the plan.", metavar="A,B"),
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="D of every run. By default the median D of the smallest budget.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Seeds per size and rate. From 3 on, the interval is over seeds.")
    ] = 1,
    out: args.OutOption = None,
    overrides: args.SetOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do not change the experiment file.")] = False,
    json: args.JsonOption = False,
) -> int:
    """Find the learning rate with a few short runs, and write it to the experiment file."""
    from flops_fit_core.study.directory import StudyFolder
    from flops_fit_core.tuning import LearningRateSweep
    from flops_fit_core.tuning import tune as train

    registry = args.registry_to_train(source, plugin, disabled)
    study = args.plan_source(source, registry, out, overrides, {})
    assert study.experiment is not None
    lr_sweep = LearningRateSweep(
        study.experiment, study.plan, sizes=_sizes(sizes), tokens=tokens, seeds=_first(seeds, study)
    )
    folder = StudyFolder(study.folder.path / "tune")
    _announce(lr_sweep, rates, study, folder.path)
    tuning = train(lr_sweep, registry, folder, rates=rates, progress=True)
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
        raise ConfigError(f"--sizes {text}: write integers separated by commas, such as --sizes 16,32") from None


def _first(count: int, study: Study) -> list[int]:
    """The experiment's seeds, followed by the smallest unused seeds."""
    if count < 1:
        raise ConfigError(f"--seeds {count}: must be 1 or more")
    assert study.experiment is not None
    seeds = list(study.experiment.sweep.seeds)
    more = (seed for seed in range(count + len(seeds)) if seed not in seeds)
    return [*seeds, *more][:count]


def _announce(lr_sweep: LearningRateSweep, rates: int, study: Study, folder: Path) -> None:

    sizes = ", ".join(str(measured.size) for measured in lr_sweep.measured)
    flops = rates * lr_sweep.flops
    print_message(
        f"{lr_sweep.option.name}, now {lr_sweep.option.value:.4g}: {rates} values a factor of 2 apart, "
        f"sizes {sizes}, D = {numbers.count(lr_sweep.tokens)} {study.plan.unit}, "
        f"{_counted(len(lr_sweep.seeds), 'seed')}: {rates * len(lr_sweep.measured) * len(lr_sweep.seeds)} runs, "
        f"{numbers.scientific(flops)} FLOPs ({numbers.share(flops / study.plan.flops, 0)} the plan's), in {folder}"
    )


def _write(source: Path, study: Study, tuning: Tuning, value: float, registry: Registry) -> bool:
    """Write the value to the experiment file if its recipe and optimizer are the tuned ones."""
    from flops_fit_core.config import load_experiment
    from flops_fit_core.tuning import write_value

    table, _, option = tuning.option.partition(".")
    if source.is_dir():
        print_message(
            f"a study's folder is not changed: write {tuning.option} = {value} to its experiment file, or run "
            f"with --set {tuning.option}={value}"
        )
        return False
    try:
        in_file, tuned = load_experiment(source, registry), study.experiment
        same = tuned is not None and all(
            getattr(in_file, kind).name == getattr(tuned, kind).name for kind in ("recipe", "optimizer")
        )
        free = table == "optimizer" or in_file.optimizer.unset("lr")
    except UserError:
        same = free = False
    if not (same and free):
        print_message(
            f"{source} without --set is a different experiment, so it is unchanged. Write {tuning.option} = "
            f"{value} to the right file"
        )
        return False
    write_value(source, table, option, value)
    print_message(f"wrote {tuning.option} = {value} to {source}")
    return True


def _report_new_runs(study: Study, tuning: Tuning, value: float | None) -> None:
    done = sum(result.is_finished for result in study.results)
    if done and value != tuning.before:
        print_message(
            f"runs with another learning rate are new runs: the {done} finished runs with "
            f"{tuning.option} = {tuning.before:.4g} stay in the store, and 'flops-fit run' trains new runs"
        )


def _print(tuning: Tuning, lr_sweep: LearningRateSweep, source: Path) -> None:
    from flops_fit_core.report.datatable import singular

    print_table(_table(tuning))
    print_text(
        f"Nats per {singular(lr_sweep.plan.unit)}, D = {numbers.count(lr_sweep.tokens)} {lr_sweep.plan.unit}, "
        f"{_counted(len(lr_sweep.seeds), 'seed')}; * the lowest loss of a size."
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
    for side, direction, value in (("low", "below", tuning.values[0]), ("high", "above", tuning.values[-1])):
        sizes = [str(size.size) for size in tuning.sizes if size.edge == side]
        if sizes:
            print_text(
                f"! for size {', '.join(sizes)} the best value lies {direction} the values tried, {direction} "
                f"{value:.4g}. Nothing is written. To extend the sweep: flops-fit tune {source} "
                f"--set {tuning.option}={value:.4g}"
            )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _table(tuning: Tuning) -> DataTable:
    """Loss by value and size; a star marks the lowest of each size."""
    from flops_fit_core.report import DataTable
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
