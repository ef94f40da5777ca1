"""The options that commands share, and the study or registry that they select."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flops_fit_core.cli.plugin_arguments import find_plugins
from flops_fit_core.cli.printing import print_message
from flops_fit_core.config import (
    experiment_name,
    make_experiment,
    override_value,
    read_table,
    replace_choice,
)
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import PluginSetup, Registry, registry_from
from flops_fit_core.study import Study, study_folder, trust
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.heartbeat import announce_start, withdraw_start
from flops_fit_core.study.named_code import NamedCode, StudyContent, named_code

SourceArgument = Annotated[
    Path, typer.Argument(help="An experiment file (TOML, JSON, YAML) or a study's folder.", metavar="SOURCE")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The study's folder; by default runs/NAME.", metavar="FOLDER")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change an option: --set optimizer.lr=0.003. Repeatable.", metavar="A.B=VALUE"),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "-p", "--plugin", help="Use a module as a plugin: -p my_research.models, -p ./models.py.", metavar="MODULE"
    ),
]
DisableOption = Annotated[
    list[str] | None, typer.Option("--disable-plugin", help="Do not load this plugin.", metavar="PLUGIN")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _swap(kind: str) -> Any:
    return typer.Option(f"--{kind}", help=f"Choose another {kind}, by name.", metavar="NAME", show_default=False)


ModelOption = Annotated[str | None, _swap("model")]
DatasetOption = Annotated[str | None, _swap("dataset")]
OptimizerOption = Annotated[str | None, _swap("optimizer")]
ScheduleOption = Annotated[str | None, _swap("schedule")]
RecipeOption = Annotated[str | None, _swap("recipe")]
CounterOption = Annotated[str | None, _swap("counter")]
TrainerOption = Annotated[str | None, _swap("trainer")]
DeviceOption = Annotated[str | None, _swap("device")]
StoreOption = Annotated[str | None, _swap("store")]
ExecutorOption = Annotated[str | None, _swap("executor")]
FitterOption = Annotated[str | None, _swap("fitter")]
ReportOption = Annotated[
    bool,
    typer.Option(
        "--report/--no-report",
        help="Write the page and the figures at the end.",
        envvar="FLOPS_FIT_REPORT",
    ),
]


def registry_for(source: Path | None, modules: Sequence[str] | None, disabled: Sequence[str] | None) -> Registry:
    """The installed plugins and those given with ``-p``, for commands that read.

    Of the plugins that a study's folder names, only the disabled ones count: no module is imported because a
    folder names it.
    """
    saved = StudyFolder(source).setup() if source is not None and source.is_dir() else PluginSetup()
    named, paths = find_plugins(modules or ())
    setup = PluginSetup(modules=named, disabled=_union(saved.disabled, disabled), paths=paths)
    return registry_from(setup)


def registry_to_train(
    source: Path | None, modules: Sequence[str] | None, disabled: Sequence[str] | None
) -> Registry:
    """The registry of a command that trains, or that builds models.

    If the source is a study's folder that names code, the user must consent to it: with ``-p`` for a plugin, by an
    earlier ``flops-fit trust`` or ``flops-fit run EXPERIMENT``, or by the answer to a question on a terminal. Then
    the study's plugins are loaded as well.

    Raises UntrustedCode without consent.
    """
    registry = registry_for(source, modules, disabled)
    if source is None or not source.is_dir():
        return registry
    folder = StudyFolder.existing(source)
    content = StudyContent.read(folder)
    code = trust.missing_consent(folder, content, registry)
    if not code:
        return registry
    record = trust.trusted(folder, content, registry) or _ask(folder, content, registry, code)
    setup = registry.setup
    missing = {name: module for name, module in code.modules.items() if name not in setup.disabled}
    paths = tuple(dict.fromkeys([*setup.paths, *record.paths]))
    return registry_from(setup.model_copy(update={"modules": {**missing, **setup.modules}, "paths": paths}))


def _ask(folder: StudyFolder, content: StudyContent, registry: Registry, code: NamedCode) -> trust.TrustRecord:
    """Ask on a terminal for consent, and record it for the code that was shown. Raises ConfigError for another
    answer than yes, UntrustedCode without a terminal."""
    refusal = trust.UntrustedCode(folder, code, trust.read_record(folder))
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise refusal
    paths = trust.module_places(folder, registry.setup.paths)
    all_code = named_code(folder, content, registry, paths=paths)
    print_message(str(refusal))
    if not typer.confirm("Allow it now?", err=True):
        raise ConfigError(f"nothing of {folder.shown} was run")
    trust.trust(folder, all_code, paths)
    content = StudyContent.read(folder)  # again: it may have changed during the question
    if (record := trust.trusted(folder, content, registry)) is None:
        code = trust.missing_consent(folder, content, registry)
        raise trust.UntrustedCode(folder, code, trust.read_record(folder))
    return record


def _union(first: Sequence[str], second: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(sorted({*first, *(second or ())}))


def plan_source(
    source: Path,
    registry: Registry,
    out: Path | None,
    overrides: list[str] | None,
    swaps: Mapping[str, str | None],
    *,
    starts: bool = False,
) -> Study:
    """Read and plan an experiment file, or the experiment of a study's folder. Raises UserError.

    ``starts``: whether training follows, which other processes see at once.
    """
    from flops_fit_core.api.functions import plan_study

    if source.is_dir():
        folder = StudyFolder.existing(source)
        folder.check_can_train(registry)
        content = StudyContent.read(folder)
        trust.check_consent(folder, registry, content)
        data, origin, out = dict(content.table), str(folder.experiment_file), out or source
    else:
        data, origin = read_table(source), str(source)
        data.setdefault("name", experiment_name(source))
    for kind, name in swaps.items():
        if name is not None:
            dropped = replace_choice(data, kind, name)
            if dropped:
                options = ", ".join(dropped)
                print_message(f"--{kind} {name}: dropped {options}. To keep them: --set {kind}.name={name}")
    for override in overrides or ():
        override_value(data, override)
    experiment = make_experiment(data, registry, origin)
    if not starts:
        return plan_study(experiment, registry=registry, out=out)
    path = study_folder(out, experiment.name).path
    announce_start(path)
    try:
        return plan_study(experiment, registry=registry, out=out)
    except BaseException:
        withdraw_start(path)
        raise


def open_study(source: Path, registry: Registry, out: Path | None) -> Study:
    """An existing study, from its folder or its experiment file. Raises ConfigError."""
    if source.is_dir():
        return Study.open(source, registry)
    name = str(read_table(source).get("name", experiment_name(source)))
    study = Study.open(study_folder(out, name).path, registry)
    study.folder.check_name(name)
    return study
