"""The folder and the plugins of a study that is opened or created."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import PluginSetup, Registry, registry_from
from flops_fit_core.study.directory import StudyFolder


def study_folder(out: str | Path | None, name: str) -> StudyFolder:
    """``out``, or ``runs/<name>`` in the working directory.

    Raises ConfigError if a file is in the way or the folder has another format.
    """
    path = Path(out) if out is not None else Path("runs") / name
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(
                f"{folder} is a file; a study needs a folder: write --out FOLDER (in Python, output_dir= or out=)"
            )
    study = StudyFolder(path.absolute())
    study.check_format()
    return study


def registry_of_folder(folder: StudyFolder, plugins: Iterable[str | ModuleType], *, trust: bool) -> Registry:
    """The installed plugins and ``plugins``: modules, or their import names.

    With ``trust``, also the modules that the folder names. Raises ConfigError if a module cannot be imported.
    """
    setup = folder.setup()
    plugins = list(plugins)
    loaded = {item.__name__.rpartition(".")[2]: item for item in plugins if isinstance(item, ModuleType)}
    modules = {name.rpartition(".")[2]: name for name in plugins if isinstance(name, str)}
    named = setup.modules if trust else {}
    return registry_from(PluginSetup(modules={**named, **modules}, disabled=setup.disabled), objects=loaded)
