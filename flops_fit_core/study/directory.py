"""The files of a study's folder.

    experiment.json       the validated options that the user set
    plan.json             the resolved runs
    model_check.json      outputs of the smallest model on a batch of 2
    flops_per_token.json  FLOPs per token of further sizes, if C is not 6 N D
    plugins.json          names of plugins given with -p, disabled plugins
    results.*             the store's files
    checkpoints/          checkpoints that runs still need
    drivers/              processes that train the study now
    outbox/               results of workers that outlived their driver, until the next driver stores them
    report/               figures, tables, the page

They are enough to resume training, to fit again, and to trace every number later. Each JSON file outside the store
has a checksum of its content (:mod:`flops_fit_core.plugins.checked_json`).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from flops_fit_core.config import Experiment, PluginConfig, build_store, choose_from_table, make_experiment
from flops_fit_core.errors import ConfigError, DamagedFile
from flops_fit_core.plugins.checked_json import parse_record, read_checked, read_object, write_checked
from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.plugins.registry import PluginSetup, Registry
from flops_fit_core.plugins.specs import StoreSpec
from flops_fit_core.plugins.utilities import list_files
from flops_fit_core.records import LawFit, Record, SweepPlan
from flops_fit_core.study.same_experiment import experiment_table, name_of, refuse_other_experiment

R = TypeVar("R", bound=Record)

FORMAT = 2
"""Written to experiment.json. Raised when names in the files of a study change."""

IDS = "ids"
"""The key of the run ids in plan.json. They are computed again and compared when the plan is read."""

REQUIRED = {"sweep", "model", "dataset"}
"""The tables that every experiment has."""

_FOLDERS = ("checkpoints/*", "drivers", "jobs", "outbox", "report", "report/*")
_TEMPORARY = re.compile(r"\.([\w.-]+\.(jsonl?|pt|csv|html|png|svg|pdf|parquet)|claim)\.([0-9a-f]{8}|new)")
_TEMPORARY_SECONDS = 600.0
"""Newer temporary files stay: another process may be writing them."""

INLINE = "inline"
"""The plugin of Python objects passed to ``find_optimal``; a study's folder has only their names."""


class StudyFolder:
    """Reads and writes the files of one study. Writing a file replaces it atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def existing(cls, path: Path) -> StudyFolder:
        """The folder of a study. Raises ConfigError if it has no study."""
        study = cls(path)
        if not study.experiment_file.exists() or not study.plan_file.exists():
            raise ConfigError(
                f"{path} is not a study: it has no experiment.json and plan.json. To make one: "
                f"flops-fit run EXPERIMENT --out {path}"
            )
        study.table()
        return study

    @property
    def shown(self) -> str:
        """The path for a command line: relative if it is below the working directory."""
        return str(self.path.relative_to(Path.cwd())) if self.path.is_relative_to(Path.cwd()) else str(self.path)

    @property
    def experiment_file(self) -> Path:
        return self.path / "experiment.json"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def plugins_file(self) -> Path:
        return self.path / "plugins.json"

    @property
    def fit_file(self) -> Path:
        return self.path / "fit.json"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def save(self, experiment: Experiment, plan: SweepPlan, setup: PluginSetup) -> None:
        """Write the experiment, the plan and the plugins. Raises ConfigError for an experiment of another name."""
        self.check_same_experiment(experiment)
        self.path.mkdir(parents=True, exist_ok=True)
        self.save_table(experiment_table(experiment))
        write_checked(self.plan_file, plan, {IDS: [run.id for run in plan.runs]})
        write_checked(self.plugins_file, setup.model_dump(mode="json", exclude={"paths"}))

    def save_table(self, table: Mapping[str, Any]) -> None:
        """Write experiment.json: the experiment as plain data, and the folder format."""
        write_checked(self.experiment_file, table, {"format": FORMAT})

    def save_fit(self, fit: LawFit) -> None:
        write_checked(self.fit_file, fit)

    def setup(self) -> PluginSetup:
        """The plugins that the study uses. Raises DamagedFile.

        Names only: import paths and ``entry_points`` in the file are ignored, because anybody may have written
        them.
        """
        if not self.plugins_file.exists():
            return PluginSetup()
        saved = self._load(PluginSetup, self.plugins_file)
        for name in [*saved.modules, *saved.modules.values(), *saved.disabled]:
            if not re.fullmatch(r"\w[\w.-]*", name):
                reason = f"{name!r} is not the name of a plugin or module"
                raise self._with_advice(DamagedFile(self.plugins_file, reason))
        return PluginSetup(modules=saved.modules, disabled=saved.disabled)

    def needs_plugin(self, name: str, module: str) -> str:
        """The message about a plugin of the study that is not loaded."""
        return (
            f"{self.shown} needs plugin {name!r}, which is not installed. flops-fit imports no module because a "
            f"study's folder names it. If you trust this one, add -p {module} (in Python: "
            f"Study.open(..., plugins=[{module!r}]))"
        )

    def plan(self) -> SweepPlan:
        """The plan. Raises DamagedFile, ConfigError if this flops-fit computes other ids for its runs."""
        values, ids = self._read(self.plan_file, IDS)
        plan = self._parse(SweepPlan, values, self.plan_file)
        if ids is not None and ids != [run.id for run in plan.runs]:
            raise ConfigError(
                f"{self.plan_file}: this flops-fit computes other ids for the planned runs, so it would not find "
                f"their results. Use the flops-fit that planned the study, or plan again: {self._how_to_plan}"
            )
        return plan

    @property
    def _how_to_plan(self) -> str:
        return (
            f"flops-fit run EXPERIMENT --out {self.shown} (in Python, find_optimal or run with the same arguments)"
        )

    def _load(self, kind: type[R], path: Path) -> R:
        return self._parse(kind, self._read(path)[0], path)

    def _parse(self, kind: type[R], values: Mapping[str, Any], path: Path) -> R:
        try:
            return parse_record(kind, values, path)
        except DamagedFile as error:
            raise self._with_advice(error) from None

    def _read(self, path: Path, header: str | None = None) -> tuple[dict[str, Any], Any]:
        try:
            return read_checked(path, header)
        except DamagedFile as error:
            raise self._with_advice(error) from None

    def _with_advice(self, error: DamagedFile) -> DamagedFile:
        advice = (
            f"The results in the store are not affected. To write the file again: {self._how_to_plan}; finished "
            f"runs are kept. To change a study, edit the experiment file instead of {error.path.name}"
        )
        return DamagedFile(error.path, error.reason, advice)

    def check_same_experiment(self, experiment: Experiment) -> None:
        """Raises ConfigError if the folder has an experiment of another name."""
        try:
            recorded = self.table() if self.experiment_file.exists() else None
        except DamagedFile:
            recorded = self._name_in_plan()
        if recorded is not None:
            refuse_other_experiment(self.shown, recorded, experiment)

    def check_name(self, name: str) -> None:
        """Raises ConfigError if the folder's experiment has another name than an experiment file."""
        other = name_of(self.table())
        if other != name:
            raise ConfigError(
                f"{self.shown} has the experiment {other!r}, not {name!r}: name the folder instead of the "
                f"experiment file, or choose the folder of {name!r} with --out FOLDER"
            )

    def _name_in_plan(self) -> dict[str, Any] | None:
        """The name of the planned experiment, if experiment.json is damaged; None if no plan can be read."""
        try:
            return {"name": self.plan().name}
        except ConfigError:
            return None

    @property
    def python_objects(self) -> dict[str, str]:
        """Kind -> name of each Python object passed to ``find_optimal``: ``{"model": "inline/model"}``."""
        table = self.table()
        chosen = {kind: value for kind, value in table.items() if isinstance(value, dict) and "name" in value}
        names = {kind: str(value["name"]) for kind, value in chosen.items()}
        return {kind: name for kind, name in names.items() if name.startswith(f"{INLINE}/")}

    @property
    def how_to_train(self) -> str:
        """The call or command that trains the missing runs."""
        if self.python_objects:
            return f"call find_optimal with the same objects and output_dir={self.shown!r}"
        return f"'flops-fit run {self.shown}'"

    def check_can_train(self, registry: Registry) -> None:
        """Raises ConfigError for a study of Python objects that this process lacks."""
        objects = self.python_objects
        if not objects or INLINE in registry.plugins:
            return
        raise ConfigError(
            f"{self.shown} was made by find_optimal with Python objects ({', '.join(objects)}), which its folder "
            f"does not contain. To plan, train or retry, call find_optimal with the same objects and "
            f"output_dir={self.shown!r}. The commands status, runs, show, export, fit, predict, backtest, report, "
            f"prune-checkpoints and store copy work without them"
        )

    def experiment(self, registry: Registry, table: Mapping[str, Any] | None = None) -> Experiment:
        """The complete experiment, from ``table`` if the caller has read it. Raises ConfigError if a plugin of it
        is missing."""
        self.check_can_train(registry)
        return make_experiment(self.table() if table is None else table, registry, str(self.experiment_file))

    def choice(self, kind: str, registry: Registry) -> PluginConfig[Any]:
        """The experiment's plugin of a kind; the plugins of other kinds may be missing. Raises ConfigError."""
        default = Experiment.model_fields[kind].default
        if kind in self.python_objects and INLINE not in registry.plugins:
            raise ConfigError(
                f"{self.shown} was made by find_optimal with a {kind} given as a Python object, which its folder "
                f"does not contain: use the study that find_optimal returns"
                + ("" if kind != "fitter" else ", or name another with --fitter NAME")
            )
        entry = self.table().get(kind, default)
        name = str(entry.get("name", "") if isinstance(entry, dict) else entry)
        plugin, modules = name.partition("/")[0], self.setup().modules
        if plugin in modules and plugin not in registry.plugins:
            raise ConfigError(self.needs_plugin(plugin, modules[plugin]))
        return choose_from_table(kind, entry, registry, str(self.experiment_file))

    def table(self) -> dict[str, Any]:
        """The experiment as plain data. Raises DamagedFile, ConfigError for another folder format."""
        try:
            # The format is checked first: another format may have another checksum.
            values = read_object(self.experiment_file)
        except DamagedFile as error:
            raise self._with_advice(error) from None
        if missing := sorted(REQUIRED - set(values)):
            raise self._with_advice(DamagedFile(self.experiment_file, f"it lacks the key {missing[0]!r}"))
        if (folder_format := values.get("format", 1)) != FORMAT:
            raise ConfigError(
                f"{self.shown} has study folder format {folder_format}, and this flops-fit reads format {FORMAT}: "
                f"open it with the flops-fit that wrote it, or start a new study with --out FOLDER (output_dir=)"
            )
        data, _ = self._read(self.experiment_file, "format")
        if unknown := sorted(set(data) - set(Experiment.model_fields)):
            raise self._with_advice(DamagedFile(self.experiment_file, f"it has an unknown key {unknown[0]!r}"))
        return data

    def check_format(self) -> None:
        """Raises ConfigError for a folder of another format. A damaged experiment.json is replaced by planning."""
        if self.experiment_file.exists():
            with contextlib.suppress(DamagedFile):
                self.table()

    def open_store(self, chosen: PluginConfig[StoreSpec]) -> ResultStore:
        """Open the study's store.

        Raises StoreError for a file that is damaged or not from flops-fit, PluginError if the plugin builds no
        ResultStore.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        return build_store(chosen, self.path)


def remove_temporary_files(study: Path) -> None:
    """Remove files that atomic writes left in a study's folder when their process was killed."""
    for folder in (study, *(item for pattern in _FOLDERS for item in list_files(study, pattern))):
        for file in list_files(folder, ".*"):
            with contextlib.suppress(OSError):
                age = time.time() - file.lstat().st_mtime
                if is_temporary(file) and age > _TEMPORARY_SECONDS:
                    file.unlink()


def is_temporary(file: Path) -> bool:
    """Whether an atomic write of a study's file left it, or is writing it now."""
    return _TEMPORARY.fullmatch(file.name) is not None
