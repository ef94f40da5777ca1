"""The code that a study's folder names: plugin modules, functions, programs. Imports and runs none of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flops_fit_core.config import Experiment
from flops_fit_core.config.secrets import mask_secrets
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.code_files import file_digest, folder_code, module_code, value_code
from flops_fit_core.plugins.options import code_options
from flops_fit_core.plugins.registry import KINDS, RegisteredSpec, Registry
from flops_fit_core.records import PluginChoice, RunSpec, SweepPlan
from flops_fit_core.study.directory import INLINE, StudyFolder

RUN_KINDS = ("model", "dataset", "optimizer", "schedule", "counter", "trainer")
"""The kinds of plugins in a run."""

Choice = tuple[str, str, Mapping[str, Any]]
"""Kind, name and options of a chosen plugin."""


@dataclass(frozen=True)
class NamedCode:
    """Code that training from a study's folder would run."""

    modules: Mapping[str, str] = field(default_factory=dict)
    """Plugin name -> import name of a module that is not loaded."""
    options: tuple[str, ...] = ()
    """Options that name code, with their values: ``trainer trainers/command: command = 'python train.py'``."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Path -> SHA-256 of each first-party file that the modules and the options run."""

    def __bool__(self) -> bool:
        return bool(self.modules or self.options)

    def lines(self) -> list[str]:
        """One line per module, option and file, for the user. Control characters are escaped."""
        modules = [f"plugin module {module!r}" for module in self.modules.values()]
        return [*modules, *self.options, *(f"file {file!r}" for file in self.files)]


def named_code(
    folder: StudyFolder,
    registry: Registry,
    *,
    loaded: Collection[str] = (),
    paths: Sequence[str] = (),
    plan: SweepPlan | None = None,
) -> NamedCode:
    """The code that training from this folder would run.

    Args:
        folder: A study.
        registry: The installed plugins and those that the user named.
        loaded: Names of plugins in ``registry`` that the user named. All others that the folder names are listed,
            with all options of their components, because only the plugin could tell which of them name code.
        paths: Folders to search for modules, after Python's path.
        plan: The folder's plan, if it has been read: that of 10,000 runs takes seconds.

    Raises ConfigError for a damaged experiment.json or plugins.json.
    """
    modules = {name: module for name, module in folder.setup().modules.items() if name not in loaded}
    choices = [*_in_experiment(folder.table()), *_in_plan(plan or _readable_plan(folder))]
    files = {file for module in modules.values() for file in module_code(module, paths)}
    code = _collect(choices, registry, modules, files)
    study = folder.path.resolve()
    if any(Path(file).resolve().is_relative_to(study) for file in code.files):
        inside = {str(file): file_digest(file) for file in folder_code(study)}
        return NamedCode(code.modules, code.options, dict(sorted({**code.files, **inside}.items())))
    return code


def _readable_plan(folder: StudyFolder) -> SweepPlan | None:
    """None for a damaged plan: no run of it is trained, and the next plan replaces it."""
    try:
        return folder.plan()
    except ConfigError:
        return None


def code_of_runs(runs: Iterable[RunSpec], registry: Registry) -> NamedCode:
    """The code that the options of these runs name."""
    return _collect(_in_runs(runs, {}), registry, {}, set())


def code_of_experiment(experiment: Experiment, registry: Registry) -> NamedCode:
    """The code that the options of an experiment name."""
    return _collect(_in_experiment(experiment.model_dump(mode="json")), registry, {}, set())


def code_of_store(name: str, options: Mapping[str, Any], registry: Registry) -> NamedCode:
    """The servers that the options of a store name."""
    return _collect([("store", name, options)], registry, {}, set())


def _collect(
    choices: Iterable[Choice], registry: Registry, modules: Mapping[str, str], files: set[Path]
) -> NamedCode:
    lines: set[str] = set()
    for kind, name, options in choices:
        directory = Path(str(options["directory"])) if "directory" in options else None
        title = f"{kind} {name if name.isprintable() else repr(name)}"
        for option, value in _code_values(kind, name, options, registry, modules).items():
            shown = mask_secrets(value)
            lines.add(f"{title}: {option} = {shown!r}" if option else f"{title}: {_json(shown)}")
            files |= value_code(value, directory)
    digests = {str(file): file_digest(file) for file in sorted(files)}
    return NamedCode(dict(modules), tuple(sorted(lines)), digests)


def _code_values(
    kind: str, name: str, options: Mapping[str, Any], registry: Registry, modules: Mapping[str, str]
) -> dict[str, Any]:
    """The options that name code; all options, under an empty name, for a component of a plugin in ``modules``."""
    plugin, _, _ = name.rpartition("/")
    spec = _find(kind, name, registry)
    if plugin == INLINE:
        return {}
    if modules and (plugin in modules or spec is None):
        return {"": dict(options)} if options else {}
    names = code_options(spec.spec.options) if spec is not None else []
    return {option: options[option] for option in names if options.get(option)}


def _find(kind: str, name: str, registry: Registry) -> RegisteredSpec[Any] | None:
    """The spec, also if its requirements are not installed."""
    plugin, _, bare = name.rpartition("/")
    offers = [item for item in registry.offers(kind) if item.spec.name == bare and plugin in ("", item.plugin)]
    return offers[0] if offers else None


# ---------------------------------------------------------------------------- choices


def _in_experiment(table: Mapping[str, Any]) -> Iterator[Choice]:
    for kind in KINDS:
        if kind in table:
            yield from _in_entry(kind, table[kind])
    loggers = table.get("loggers")
    for entry in loggers if isinstance(loggers, list) else []:
        yield from _in_entry("logger", entry)


def _in_entry(kind: str, entry: Any) -> Iterator[Choice]:
    if isinstance(entry, str):
        yield kind, entry, {}
    elif isinstance(entry, Mapping):
        default = getattr(Experiment.model_fields.get(kind), "default", None)
        name = entry.get("name", default)
        yield kind, str(name or ""), {option: value for option, value in entry.items() if option != "name"}


def _in_plan(plan: SweepPlan | None) -> Iterator[Choice]:
    if plan is None:
        return
    yield "device", plan.device.name, {**plan.device.options, **plan.runtime.get("device", {})}
    yield from _in_runs((*plan.runs, *plan.replaced.values()), plan.runtime)


def _in_runs(runs: Iterable[RunSpec], runtime: Mapping[str, Mapping[str, Any]]) -> Iterator[Choice]:
    """Each different choice of the runs, with the plan's runtime options."""
    choices: dict[tuple[str, str], tuple[str, PluginChoice]] = {}
    for run in runs:
        for kind in RUN_KINDS:
            choice: PluginChoice = getattr(run, kind)
            choices.setdefault((kind, _json([choice.name, choice.options])), (kind, choice))
    for kind, choice in choices.values():
        yield kind, choice.name, {**choice.options, **runtime.get(kind, {})}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
