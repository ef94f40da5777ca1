"""The registry: finds the specs of plugins by name."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from flops_fit_core.errors import ConfigError, PluginNotFound
from flops_fit_core.plugins.registry.explaining import hint_for, warn_if_slow
from flops_fit_core.plugins.registry.loading import PluginLoader
from flops_fit_core.plugins.registry.offers import PluginProblem, PluginSetup, RegisteredSpec
from flops_fit_core.plugins.renamed import explain_plugin
from flops_fit_core.plugins.source_imports import import_from_source
from flops_fit_core.records import RunResult, RunSpec, SweepPlan

logger = logging.getLogger("flops_fit")


class Registry:
    """The specs of all plugins. Read-only.

    A bundled plugin is loaded with the first query for a kind that it offers. The bundled laws and all other
    plugins are loaded at once. Queries return the same as if all plugins were.

    Args:
        plugins: Plugins that are not installed: name -> module, or any object with hook implementations.
        entry_points: Whether to discover installed plugins.
        disabled: Names of plugins that are not imported, in addition to those in ``FLOPS_FIT_DISABLE``.
        paths: Folders that :attr:`setup` records, for workers that must import ``plugins`` again.

    A plugin that cannot be imported, does not match the hooks, raises, or returns a wrong type is left out
    completely and recorded in :attr:`problems`. All other plugins work. If a plugin is in ``plugins`` and also
    installed, only the former counts: a study that was started with a module continues after its installation.
    """

    def __init__(
        self,
        plugins: Mapping[str, object] | None = None,
        *,
        entry_points: bool = True,
        disabled: Iterable[str] = (),
        paths: Sequence[str] = (),
    ) -> None:
        plugins = dict(plugins or {})
        self.disabled = frozenset(disabled) | _disabled_by_environment()
        self.setup = PluginSetup(
            modules={name: plugin.__name__ for name, plugin in plugins.items() if isinstance(plugin, ModuleType)},
            disabled=tuple(sorted(self.disabled)),
            entry_points=entry_points,
            paths=tuple(paths),
        )
        objects = {name: plugin for name, plugin in plugins.items() if not isinstance(plugin, ModuleType)}
        self.objects: Mapping[str, object] = ObjectPlugins(objects, self)
        """Plugins that are plain objects. They reach another process by cloudpickle only."""
        self._loader = PluginLoader(self.disabled)
        self._loader.add(
            {name: (plugin, _origin(plugin)) for name, plugin in plugins.items()},
            entry_points=entry_points,
            excluded=self.setup.paths,
        )

    def with_plugins(self, plugins: Mapping[str, object]) -> Registry:
        """A new registry with these plugins in addition."""
        modules = {name: importlib.import_module(module) for name, module in self.setup.modules.items()}
        return Registry(
            {**modules, **self.objects, **plugins},
            entry_points=self.setup.entry_points,
            disabled=self.setup.disabled,
            paths=self.setup.paths,
        )

    # ------------------------------------------------------------------ queries

    @property
    def plugins(self) -> dict[str, str]:
        """Name of each usable plugin -> its source."""
        self._loader.load()
        return dict(sorted(self._loader.sources.items()))

    @property
    def problems(self) -> list[PluginProblem]:
        """The plugins that cannot be used, and the reasons."""
        self._loader.load()
        return self._loader.problems

    @property
    def importing_torch(self) -> list[str]:
        """Installed plugins that import torch when they are loaded, which slows every command."""
        self._loader.load()
        return self._loader.importing_torch

    def offers(self, kind: str | None = None) -> list[RegisteredSpec[Any]]:
        """The specs of a kind, or of all kinds."""
        return self._loader.offers(kind)

    def find(self, kind: str, name: str) -> RegisteredSpec[Any]:
        """The spec called ``name``, or ``plugin/name`` if two plugins offer the same name.

        Raises PluginNotFound for an unknown or ambiguous name, and ConfigError for a spec with requirements that
        are not installed.
        """
        plugin, _, bare = name.rpartition("/")
        matches = [
            offer for offer in self.offers(kind) if offer.spec.name == bare and plugin in ("", offer.plugin)
        ]
        if not matches:
            raise PluginNotFound(self._not_found(kind, name))
        if len(matches) > 1:
            names = " or ".join(repr(offer.name) for offer in matches)
            raise PluginNotFound(f"{len(matches)} plugins offer {kind} {bare!r}; write {names}")
        if missing := matches[0].missing():
            raise ConfigError(matches[0].install_message(missing))
        return matches[0]

    def _not_found(self, kind: str, name: str) -> str:
        if advice := explain_plugin(kind, name):
            return advice
        offers = self.offers(kind)
        names = sorted({offer.spec.name for offer in offers} | {offer.name for offer in offers if "/" in name})
        message = f"no {kind} named {name!r}; available: {', '.join(names) or 'none'}"
        if close := difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5):
            message += f". Did you mean {close[0]!r}?"
        for problem in self.problems:
            message += f"\n  not usable: {problem}"
        for plugin in sorted(self.disabled):
            message += f"\n  disabled: {plugin}"
        return message

    # ------------------------------------------------------------------ observers

    def run_finished(self, run: RunSpec, result: RunResult) -> None:
        """Call every observer. Exceptions are logged."""
        self._notify("flops_fit_run_finished", run=run, result=result)

    def sweep_finished(self, plan: SweepPlan, results: Sequence[RunResult]) -> None:
        """Call every observer. Exceptions are logged."""
        self._notify("flops_fit_sweep_finished", plan=plan, results=results)

    def _notify(self, hook_name: str, **arguments: Any) -> None:
        for impl in self._loader.implementations(hook_name):
            try:
                impl.function(*(arguments[name] for name in impl.argnames))
            except KeyboardInterrupt:
                raise
            except BaseException:
                logger.exception("plugin %s: %s", self._loader.label(impl.plugin_name), hook_name)


class ObjectPlugins(dict[str, object]):
    """A registry's plugins that are plain objects. The same process can use its registry; pickling drops it."""

    def __init__(self, objects: Mapping[str, object], registry: Registry) -> None:
        super().__init__(objects)
        self.registry = registry

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _origin(plugin: object) -> str:
    if isinstance(plugin, ModuleType):
        return f"module {plugin.__name__}"
    module = inspect.getmodule(type(plugin))
    return f"passed in ({module.__name__ if module else 'unknown'}.{type(plugin).__qualname__})"


def _disabled_by_environment() -> frozenset[str]:
    names = os.environ.get("FLOPS_FIT_DISABLE", "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def registry_from(setup: PluginSetup, objects: Mapping[str, object] | None = None) -> Registry:
    """The registry that ``setup`` describes: that of ``objects`` if it is in this process, otherwise a new
    registry.

    Raises ConfigError if a module cannot be imported. Disabled plugins are not imported.
    """
    if isinstance(objects, ObjectPlugins) and objects.registry.setup == setup:
        return objects.registry
    for path in setup.paths:
        import_from_source(Path(path))
        if path not in sys.path:
            sys.path.append(path)  # last, so that no file of it shadows an installed package
    plugins: dict[str, object] = {}
    disabled = _disabled_by_environment().union(setup.disabled)
    for name, module in setup.modules.items():
        if name in disabled:
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr), warn_if_slow(f"module {module}", "import", name):
                plugins[name] = importlib.import_module(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            problem = PluginProblem(f"module {module}", "import", error, hint_for(error))
            raise ConfigError(f"cannot use the plugin {problem}") from error
    return Registry(
        {**plugins, **(objects or {})},
        entry_points=setup.entry_points,
        disabled=setup.disabled,
        paths=setup.paths,
    )


@functools.cache
def installed() -> Registry:
    """The registry of this environment's installed plugins."""
    return Registry()
