"""The code that a study's folder names: plugin modules, functions, programs. Imports and runs none of it."""

from __future__ import annotations

import hashlib
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


@dataclass(frozen=True)
class StudyContent:
    """The parts of a study that name code. Read once: another user may change the files after the check."""

    table: Mapping[str, Any]
    """The experiment as plain data."""
    modules: Mapping[str, str]
    """Plugin name -> import name."""
    plan: SweepPlan | None

    @classmethod
    def read(cls, folder: StudyFolder, plan: SweepPlan | None = None) -> StudyContent:
        """The content of a folder, with ``plan`` if the caller has read it: 10,000 runs take seconds.

        Raises ConfigError for a damaged experiment.json or plugins.json.
        """
        return cls(folder.table(), folder.setup().modules, plan or readable_plan(folder))


def named_code(
    folder: StudyFolder,
    content: StudyContent,
    registry: Registry,
    *,
    loaded: Collection[str] = (),
    paths: Sequence[str] = (),
) -> NamedCode:
    """The code that training from this folder would run.

    Args:
        folder: A study.
        content: The folder's content.
        registry: The installed plugins and those that the user named.
        loaded: Names of plugins in ``registry`` that the user named. All others that the folder names are listed,
            with all options of their components, because only the plugin could tell which of them name code.
        paths: Folders to search for modules, after Python's path.
    """
    modules = {name: module for name, module in content.modules.items() if name not in loaded}
    choices = [*_in_experiment(content.table), *_in_plan(content.plan)]
    files = {file for module in modules.values() for file in module_code(module, paths)}
    code = _collect(choices, registry, modules, files)
    study = folder.path.resolve()
    if any(Path(file).resolve().is_relative_to(study) for file in code.files):
        inside = {str(file): file_digest(file) for file in folder_code(study)}
        return NamedCode(code.modules, code.options, dict(sorted({**code.files, **inside}.items())))
    return code


def readable_plan(folder: StudyFolder) -> SweepPlan | None:
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
        title = f"{kind} {name if name.isprintable() else repr(name)}".strip()
        for option, value in _code_values(kind, name, options, registry, modules).items():
            lines.add(f"{title}: {_shown(option, value)}")
            files |= value_code(value, _working_directory(options))
    digests = {str(file): file_digest(file) for file in sorted(files)}
    return NamedCode(dict(modules), tuple(sorted(lines)), digests)


def _working_directory(options: Mapping[str, Any]) -> Path | None:
    """The folder in which the trainer ``command`` starts its program; None for other plugins."""
    if "command" in options:
        return Path(str(options.get("directory", Path.cwd()))).absolute()
    return Path(str(options["directory"])).absolute() if "directory" in options else None


def _shown(option: str, value: Any) -> str:
    """An option for the user. A hash stands for the secrets that are not shown, so that no change is hidden."""
    shown = mask_secrets(value, option)
    text = f"{option} = {shown!r}" if option else _json(shown)
    if shown == value:
        return text
    return f"{text} (SHA-256 of the hidden text: {hashlib.sha256(_json(value).encode()).hexdigest()[:32]})"


def _code_values(
    kind: str, name: str, options: Mapping[str, Any], registry: Registry, modules: Mapping[str, str]
) -> dict[str, Any]:
    """The options that name code; all options, under an empty name, for a component of a plugin in ``modules``."""
    plugin, _, _ = name.rpartition("/")
    specs = _find(kind, name, registry)
    if plugin == INLINE:
        return {}
    if modules and (plugin in modules or not specs):
        return {"": dict(options)} if options else {}
    names = {option for spec in specs for option in code_options(spec.spec.options)}
    return {option: options[option] for option in sorted(names) if options.get(option)}


def _find(kind: str, name: str, registry: Registry) -> list[RegisteredSpec[Any]]:
    """The specs that a name may mean, also if their requirements are not installed.

    Without a name, all of the kind: another choice of the experiment may decide the default.
    """
    plugin, _, bare = name.rpartition("/")
    return [
        item
        for item in registry.offers(kind)
        if not name or (item.spec.name == bare and plugin in ("", item.plugin))
    ]


# ---------------------------------------------------------------------------- choices


def _in_experiment(table: Mapping[str, Any]) -> Iterator[Choice]:
    for kind in KINDS:
        if kind in table:
            yield from _in_entry(kind, table[kind])
    for size in _sizes(table):
        yield from _in_entry("model", {**_as_table(table.get("model")), **size})
    loggers = table.get("loggers")
    for entry in loggers if isinstance(loggers, list | tuple) else []:
        yield from _in_entry("logger", entry)


def _sizes(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tables in ``sweep.sizes``: each changes options of the model."""
    sizes = _as_table(table.get("sweep")).get("sizes")
    return [size for size in sizes if isinstance(size, Mapping)] if isinstance(sizes, list | tuple) else []


def _as_table(entry: Any) -> dict[str, Any]:
    if isinstance(entry, Mapping):
        return dict(entry)
    return {"name": entry} if isinstance(entry, str) else {}


def _in_entry(kind: str, entry: Any) -> Iterator[Choice]:
    options = _as_table(entry)
    yield kind, str(options.pop("name", None) or ""), options


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
