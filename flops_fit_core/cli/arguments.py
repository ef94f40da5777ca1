"""The options that commands share, and the study or registry that they select."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

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
from flops_fit_core.study import Study, study_folder
from flops_fit_core.study.directory import StudyFolder

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
    typer.Option("-p", "--plugin", help="Use a module as a plugin: -p my_research.models.", metavar="MODULE"),
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


@dataclass(frozen=True)
class Plugins:
    """Plugins that a command uses in addition to the installed ones, and plugins that it disables."""

    modules: Sequence[str]
    disabled: Sequence[str]

    def registry(self, saved: PluginSetup | None = None) -> Registry:
        """The registry, with a study's plugins. Modules are imported from the working directory, too."""
        saved = saved or PluginSetup()
        named = _plugin_names(self.modules)
        return registry_from(
            PluginSetup(
                modules={**saved.modules, **named},
                disabled=tuple(sorted({*saved.disabled, *self.disabled})),
                paths=tuple(dict.fromkeys([*saved.paths, *([str(Path.cwd())] if named else [])])),
            )
        )


def _plugin_names(modules: Sequence[str]) -> dict[str, str]:
    """Plugin name (last part of the module) -> module. Raises ConfigError for a duplicate name or a file."""
    named: dict[str, str] = {}
    for module in modules:
        if module.endswith(".py") or "/" in module or "\\" in module:
            name = ".".join(Path(module).with_suffix("").parts)
            raise ConfigError(f"-p {module} is a file: write the import name of the module, -p {name}")
        other = named.setdefault(module.rpartition(".")[2], module)
        if other != module:
            name = module.rpartition(".")[2]
            raise ConfigError(f"-p {other} and -p {module} have the same plugin name, {name!r}")
    return named


def registry_for(source: Path | None, modules: list[str] | None, disabled: list[str] | None) -> Registry:
    """The registry for an experiment file or a study's folder."""
    saved = None
    if source is not None and source.is_dir():
        saved = StudyFolder(source).setup()
    return Plugins(modules or (), disabled or ()).registry(saved)


def plan_source(
    source: Path,
    registry: Registry,
    out: Path | None,
    overrides: list[str] | None,
    swaps: Mapping[str, str | None],
) -> Study:
    """Read and plan an experiment file, or the experiment of a study's folder. Raises UserError."""
    from flops_fit_core.api.functions import plan_study

    if source.is_dir():
        folder = StudyFolder.existing(source)
        folder.check_can_train(registry)
        data, origin, out = folder.table(), str(folder.experiment_file), out or source
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
    return plan_study(make_experiment(data, registry, origin), registry=registry, out=out)


def open_study(source: Path, registry: Registry, out: Path | None) -> Study:
    """An existing study, from its folder or its experiment file. Raises ConfigError."""
    if source.is_dir():
        return Study.open(source, registry)
    name = str(read_table(source).get("name", experiment_name(source)))
    study = Study.open(study_folder(out, name).path, registry)
    study.folder.check_name(name)
    return study
