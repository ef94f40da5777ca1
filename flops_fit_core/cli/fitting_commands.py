"""``fit``, ``predict``, ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_diagnostics, print_json, print_table, print_text
from flops_fit_core.cli.summary import other_convention
from flops_fit_core.config import choose_from_table
from flops_fit_core.contracts import Fitter
from flops_fit_core.errors import ConfigError
from flops_fit_core.folder import write_atomically
from flops_fit_core.records import LawFit
from flops_fit_core.registry import Registry
from flops_fit_core.study import Study

TABLES = (".csv", ".parquet", ".tsv")

TableArgument = Annotated[
    Path,
    typer.Argument(
        help="A study's folder, an experiment file, or a table of runs (CSV, parquet).", metavar="SOURCE"
    ),
]
FlopsArgument = Annotated[list[float], typer.Option("--flops", help="Training FLOPs. Repeatable.", metavar="C")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(fit)
    app.command()(predict)
    app.command()(report)


def fit(
    source: TableArgument,
    fitter: args.FitterOption = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", help="Name a column: --map params=n_params. Repeatable.", metavar="COLUMN=NAME"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the fit with its draws, as JSON.")] = None,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
    json: args.JsonOption = False,
) -> None:
    """Fit a law to runs: a study's, or anybody's in a table with columns params, tokens, flops, loss."""
    registry = args.registry_for(source, plugin, without)
    study: Study | None = None
    if source.suffix.lower() in TABLES:
        from flops_fit_core.fitting import read_runs

        law = _fitter(fitter or "fitters/isoflop", registry).fit(read_runs(source, _mapping(columns)))
    else:
        study = args.existing(source, registry, None)
        chosen = _fitter(fitter, registry) if fitter else study.fitter
        law = study.fit_with(chosen, study.observations)
    if out is not None:
        write_atomically(out, law.model_dump_json(indent=1))
    if json:
        print_json(law.model_dump(mode="json", exclude={"draws"}))
        return
    _print_law(law, study)


def predict(
    source: Annotated[
        Path, typer.Argument(help="A study, a table of runs, or a fit kept with --out.", metavar="SOURCE")
    ],
    flops: FlopsArgument,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
    json: args.JsonOption = False,
) -> None:
    """N_opt, D_opt and the loss to expect for a training budget, with intervals."""
    registry = args.registry_for(source, plugin, without)
    law, fitter = _law(source, registry)
    optima = [fitter.optimum(law, budget) for budget in flops]
    if json:
        shown = [optimum.model_dump(mode="json") for optimum in optima]
        print_json(shown[0] if len(shown) == 1 else shown)
        return
    from flops_fit_core.report import predictions_table

    print_table(predictions_table(law, optima))
    for note in dict.fromkeys(note for optimum in optima for note in optimum.notes):
        print_text(f"! {note}")


def report(
    source: args.SourceArgument,
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
) -> None:
    """Write figures (PNG, SVG), tables and a page that tell what came of a study, into its report folder."""
    study = args.existing(source, args.registry_for(source, plugin, without), None)
    for file in study.report(out):
        print_text(str(file))


def _print_law(law: LawFit, study: Study | None) -> None:
    from flops_fit_core.report import exponents_line, minima_table

    if law.minima:
        print_table(minima_table(law))
    print_text(exponents_line(law))
    if study is not None and (line := other_convention(study)):
        print_text(line)
    print_diagnostics(law)


def _law(source: Path, registry: Registry) -> tuple[LawFit, Fitter]:
    from flops_fit_core.api import fitter_of, load_fit

    if source.suffix.lower() in TABLES:
        from flops_fit_core.fitting import read_runs

        fitter = _fitter("fitters/isoflop", registry)
        return fitter.fit(read_runs(source)), fitter
    if source.is_file() and _is_fit(source):
        law = load_fit(source)
        return law, fitter_of(law, registry)
    study = args.existing(source, registry, None)
    return study.fit, study.fitter


def _is_fit(path: Path) -> bool:
    """Whether a JSON file is a fit rather than an experiment."""
    return path.suffix.lower() == ".json" and '"exponents"' in path.read_text(encoding="utf-8")


def _fitter(name: str, registry: Registry) -> Fitter:
    chosen = choose_from_table("fitter", name, registry, "--fitter")
    fitter: Fitter = chosen.spec.build(chosen.options)
    return fitter


def _mapping(columns: list[str] | None) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for text in columns or ():
        ours, equals, theirs = text.partition("=")
        if not equals or not ours or not theirs:
            raise ConfigError(f"--map {text}: write --map params=n_params, our name first")
        mapping[ours] = theirs
    return mapping
