"""``export``: a study's runs and law as CSV, Parquet, Markdown, LaTeX and BibTeX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from flops_fit_core import __version__
from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_csv, print_json, print_message, print_text
from flops_fit_core.errors import ConfigError
from flops_fit_core.study import Study

STANDARD_OUTPUT = Path("-")


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(export)


def _file(name: str, text: str) -> Any:
    return typer.Option(f"--{name}", help=text, metavar="FILE", show_default=False)


def export(
    source: args.SourceArgument,
    parquet: Annotated[
        Path | None, _file("parquet", "Every attempt at every run; replaces an earlier export.")
    ] = None,
    csv: Annotated[Path | None, _file("csv", "The latest result of every run.")] = None,
    markdown: Annotated[Path | None, _file("markdown", "The answer, and a table of budgets.")] = None,
    latex: Annotated[
        Path | None, _file("latex", "FLOPs and tokens per model size, like Table 3 of Hoffmann et al. 2022.")
    ] = None,
    bibtex: Annotated[Path | None, _file("bibtex", "Entries to cite flops-fit and the method.")] = None,
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """Write the runs of a study, or its law, for other programs and papers. The study may be in training.

    A text goes to standard output instead of a file with FILE = -.
    """
    files = {"csv": csv, "markdown": markdown, "latex": latex, "bibtex": bibtex}
    if parquet is None and not any(files.values()):
        raise ConfigError("name a file: --csv runs.csv, --parquet, --markdown, --latex or --bibtex")
    printed = [name for name, path in files.items() if path == STANDARD_OUTPUT]
    if parquet == STANDARD_OUTPUT:
        raise ConfigError("--parquet -: a Parquet file is not a text; name a file, --parquet runs.parquet")
    if printed and (json or len(printed) > 1):
        other = "--json" if json else f"--{printed[1]} -"
        raise ConfigError(
            f"--{printed[0]} - and {other} both print to standard output: name a file in one of them"
        )
    study = args.open_study(source, args.registry_for(source, plugin, disabled), out)
    texts: dict[str, Callable[[Study], str]] = {
        "csv": lambda study: study.runs.csv(),
        "markdown": _markdown,
        "latex": _latex,
        "bibtex": _bibtex,
    }
    confirm = print_message if printed else print_text
    if parquet is not None:
        _export_parquet(study, parquet, json, confirm)
    for name, path in files.items():
        if path == STANDARD_OUTPUT:
            print_csv(texts[name](study))
        elif path is not None:
            _write(path, texts[name](study))
            confirm(f"wrote {path}") if not json else print_json({"file": str(path.absolute())})


def _export_parquet(study: Study, path: Path, json: bool, confirm: Callable[[str], None]) -> None:
    from flops_fit_core.report.parquet import write_parquet

    attempts = study.attempts
    write_parquet(path, attempts, {run.id for run in study.plan.runs})
    runs = len({attempt.id for attempt in attempts})
    if json:
        print_json({"file": str(path.absolute()), "attempts": len(attempts), "runs": runs})
    else:
        confirm(f"{len(attempts)} attempts at {runs} runs of {study.folder.shown} are in {path}")


def _markdown(study: Study) -> str:
    from flops_fit_core.report.publication import markdown

    return markdown(study.answer(), study.table())


def _latex(study: Study) -> str:
    from flops_fit_core.report.publication import latex_table, size_rows

    return latex_table(study.fit, size_rows(study.fit, study.predict), study.plan.name)


def _bibtex(study: Study) -> str:
    from flops_fit_core.report.publication import bibtex

    return bibtex(__version__)


def _write(path: Path, text: str) -> None:
    from flops_fit_core.plugins.utilities import write_atomically

    try:
        write_atomically(path, text, durable=False)
    except OSError as error:
        raise ConfigError(f"{path}: cannot write: {error.strerror or error}") from None
