"""``tune``: the learning rate that the recipe should start from."""

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
    from flops_fit_core.tuning import Probe, Tuning

DIGITS = 3
"""Of what is written: a learning rate is never known better."""


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
    from flops_fit_core.tuning import Probe
    from flops_fit_core.tuning import tune as train

    registry = args.registry_for(source, plugin, without)
    study = args.planned(source, registry, out, overrides, {})
    assert study.experiment is not None
    chosen = Probe(study.experiment, study.plan, sizes=_sizes(sizes), tokens=tokens, seeds=_first(seeds, study))
    folder = StudyFolder(study.folder.path / "tune")
    _announce(chosen, rates, study, folder.path)
    found = train(chosen, registry, folder, rates=rates, loggers=_progress)
    value = float(f"{found.best.value:.{DIGITS}g}") if found.best else None
    written = False
    if value is not None and not dry_run:
        written = _write(source, study, found, value, registry)
    if json:
        print_json({**found.model_dump(mode="json"), "value": value, "written": written})
    else:
        _print(found, chosen, source)
    if written:
        _say_what_changes(study, found, value)
    failed = any(run.status == "failed" for run in found.runs)
    return 1 if failed or value is None else 0


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"--sizes {text}: write whole numbers with commas, such as --sizes 16,32") from None


def _first(count: int, study: Study) -> list[int]:
    """The experiment's own seeds, then others."""
    if count < 1:
        raise ConfigError(f"--seeds {count}: there must be at least one")
    assert study.experiment is not None
    own = list(study.experiment.sweep.seeds)
    others = (seed for seed in range(count + len(own)) if seed not in own)
    return [*own, *others][:count]


def _progress(study: Study) -> list[Logger]:
    from flops_fit_core.cli.progress import SweepProgress

    return [SweepProgress(console(error=True), {result.id for result in study.results if result.is_finished})]


def _announce(probe: Probe, rates: int, study: Study, folder: Path) -> None:
    from flops_fit_core.report import numbers

    sizes = ", ".join(str(one.size) for one in probe.measured)
    flops = rates * probe.flops
    say(
        f"{probe.knob.name}, now {probe.knob.value:.4g}: {rates} values a factor 2 apart, sizes {sizes}, "
        f"D = {numbers.count(probe.tokens)} {study.plan.unit}, {_counted(len(probe.seeds), 'seed')}: "
        f"{rates * len(probe.measured) * len(probe.seeds)} runs, {numbers.scientific(flops)} FLOPs "
        f"({flops / study.plan.flops:.0%} of the plan's), in {folder}"
    )


def _write(source: Path, study: Study, found: Tuning, value: float, registry: Registry) -> bool:
    """Into the file, where the file is an experiment's and chooses the plugins that the value was found for."""
    from flops_fit_core.config import load_experiment
    from flops_fit_core.tuning import write_value

    table, _, option = found.option.partition(".")
    if source.is_dir():
        say(
            f"a study's folder keeps what it was run with: write {found.option} = {value} into its experiment "
            f"file, or run with --set {found.option}={value}"
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
            f"{source} without --set is another experiment, so it is left alone: write {found.option} = {value} "
            f"where it belongs"
        )
        return False
    write_value(source, table, option, value)
    say(f"wrote {found.option} = {value} into {source}")
    return True


def _say_what_changes(study: Study, found: Tuning, value: float | None) -> None:
    done = sum(result.is_finished for result in study.results)
    if done and value != found.before:
        say(
            f"runs with another learning rate are other runs: the {done} that this study has finished with "
            f"{found.option} = {found.before:.4g} stay in its store, and 'flops-fit run' now trains new ones"
        )


def _print(found: Tuning, probe: Probe, source: Path) -> None:
    from flops_fit_core.report import numbers
    from flops_fit_core.report.datatable import singular

    print_table(_table(found))
    print_text(
        f"Nats per {singular(probe.plan.unit)}, D = {numbers.count(probe.tokens)} {probe.plan.unit}, "
        f"{_counted(len(probe.seeds), 'seed')}; * the lowest of a size."
    )
    for size in found.sizes:
        if size.value is not None and size.edge is None:
            print_text(f"  size {size.size}: best at {size.value}")
    for note in found.notes:
        print_text(f"! {note}")
    if found.best is not None:
        level = "" if found.best.low is None else f" ({found.level:.0%} interval)"
        print_text(f"Best {found.option}: {found.best}{level}; it was {found.before:.4g}")
        return
    for side, where, value in (("low", "below", found.values[0]), ("high", "above", found.values[-1])):
        sizes = [str(size.size) for size in found.sizes if size.edge == side]
        if sizes:
            print_text(
                f"! for size {', '.join(sizes)} the best lies {where} what was tried, {where} {value:.4g}. "
                f"Nothing is written. To look there: flops-fit tune {source} --set {found.option}={value:.4g}"
            )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _table(found: Tuning) -> DataTable:
    """Loss by value and size; the lowest of each size is starred."""
    from flops_fit_core.report import DataTable, numbers
    from flops_fit_core.report.datatable import Column, Row

    losses = {
        (size.params, value): found.loss(size.params, value) for size in found.sizes for value in found.values
    }

    def shown(params: int) -> Callable[[Row], str]:
        known = [loss for (of, _), loss in losses.items() if of == params and loss is not None]

        def cell(row: Row) -> str:
            loss = losses[params, row["value"]]
            return numbers.loss(loss) + (" *" if loss is not None and loss == min(known) else "  ")

        return cell

    return DataTable(
        title=f"Held-out loss by {found.option}",
        caption="",
        fields=("value",),
        rows=tuple({"value": value} for value in found.values),
        columns=(
            Column(found.option, lambda row: f"{row['value']:.4g}"),
            *(Column(f"{size.size} (N {numbers.count(size.params)})", shown(size.params)) for size in found.sizes),
        ),
    )
