"""The registry: loads plugins, isolates broken plugins and finds specs by name."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import logging
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from flops_fit_core.errors import ConfigError, PluginNotFound
from flops_fit_core.plugins import hookspecs
from flops_fit_core.plugins.registry import discovery
from flops_fit_core.plugins.registry.explaining import hint_for, warn_if_slow
from flops_fit_core.plugins.registry.law_offers import remember_laws
from flops_fit_core.plugins.registry.offers import SPEC_TYPES, PluginProblem, PluginSetup, RegisteredSpec
from flops_fit_core.plugins.renamed import explain_plugin
from flops_fit_core.plugins.source_imports import import_from_source
from flops_fit_core.plugins.specs import Spec
from flops_fit_core.records import RunResult, RunSpec, SweepPlan

logger = logging.getLogger("flops_fit")


class Registry:
    """The specs of all plugins. Complete once constructed, and read-only afterwards.

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
        self.problems: list[PluginProblem] = []
        self.importing_torch: list[str] = []
        """Installed plugins that import torch during discovery, which slows every command."""
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
        self._sources: dict[str, str] = {}
        self._pm = pluggy.PluginManager(hookspecs.PROJECT)
        self._pm.add_hookspecs(hookspecs)
        # Plugins may print when imported. Standard output must contain only the command's output.
        with contextlib.redirect_stdout(sys.stderr):
            if entry_points:
                passed = [plugin for name, plugin in plugins.items() if name not in self.disabled]
                self._load_entry_points(passed)
            for name, plugin in plugins.items():
                self._register(name, plugin, source=_origin(plugin))
            self._drop_plugins_with_unknown_hooks()
            self._offers = self._collect()
        remember_laws(self.offers("law"))

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
        return dict(sorted(self._sources.items()))

    def offers(self, kind: str | None = None) -> list[RegisteredSpec[Any]]:
        """The specs of a kind, or of all kinds."""
        return [offer for offer in self._offers if kind in (None, offer.spec.kind)]

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
        for impl in getattr(self._pm.hook, hook_name).get_hookimpls():
            try:
                impl.function(*(arguments[name] for name in impl.argnames))
            except KeyboardInterrupt:
                raise
            except BaseException:
                logger.exception("plugin %s: %s", self._label(impl.plugin_name), hook_name)

    # ------------------------------------------------------------------ discovery

    def _load_entry_points(self, passed: Sequence[object]) -> None:
        """Load installed plugins, except those that are among the ``passed`` objects."""
        candidates_by_name: dict[str, list[discovery.Installed]] = defaultdict(list)
        # A folder from which named modules are imported may have metadata of other modules.
        installed, broken = discovery.entry_points(self.setup.paths)
        for source, error in broken:
            self._add_problem(source, "read metadata", error)
        for candidate in installed:
            candidates_by_name[candidate.point.name].append(candidate)
        for name, candidates in sorted(candidates_by_name.items()):
            if name in self.disabled:
                continue
            selected = next((candidate for candidate in candidates if candidate.bundled), None)
            if selected is None and len(candidates) == 1:
                selected = candidates[0]
            for candidate in candidates:
                if candidate is not selected:
                    rivals = " and ".join(rival.source for rival in candidates if rival is not candidate)
                    clash = ValueError(f"the plugin name {name!r} is also claimed by {rivals}")
                    self._add_problem(f"{name} ({candidate.source})", "register", clash)
            if selected is not None:
                self._load(name, selected, passed)

    def _load(self, name: str, installed: discovery.Installed, passed: Sequence[object]) -> None:
        label = f"{name} ({installed.source})"
        if conflict := installed.version_conflict():
            self._add_problem(label, "register", RuntimeError(conflict))
            return
        try:
            if not installed.point.pattern.match(installed.point.value):
                raise ValueError(f"its entry point {name} = {installed.point.value} names no module")
            torch_was_imported = "torch" in sys.modules
            with warn_if_slow(label, "import", name):
                plugin = installed.point.load()
            if not torch_was_imported and "torch" in sys.modules:
                self.importing_torch.append(label)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit; the panics of Rust's extensions
            self._add_problem(label, "import", error, installed.missing())
        else:
            if installed.bundled or not any(plugin is item for item in passed):
                self._register(name, plugin, installed.source)

    def _register(self, name: str, plugin: object, source: str) -> None:
        if name in self.disabled:
            return
        if name in self._sources:
            clash = ValueError(f"the name is already taken by {self._sources[name]}")
            self._add_problem(f"{name} ({source})", "register", clash)
            return
        if registered := self._pm.get_name(plugin):
            clash = ValueError(f"this plugin is already registered as {self._label(registered)}; use one name")
            self._add_problem(f"{name} ({source})", "register", clash)
            return
        try:
            self._pm.register(plugin, name)
            self._check_hooks(plugin)
        except Exception as error:
            # Before 1.7, pluggy keeps accepted hooks of the plugin if a later hook does not match.
            self._pm.unregister(name=name)
            self._add_problem(f"{name} ({source})", "register", error)
        else:
            self._sources[name] = source

    def _check_hooks(self, plugin: object) -> None:
        """Raise TypeError for a hook that is not marked, because pluggy ignores it, and for a plugin without
        hooks."""
        marked = {hook.name for hook in self._pm.get_hookcallers(plugin) or ()}
        defined = {name for name in dir(plugin) if name in _hook_names() and callable(getattr(plugin, name))}
        if unmarked := sorted(defined - marked):
            raise TypeError(f"{', '.join(unmarked)}: not marked with @hookimpl of flops_fit_core")
        if not marked:
            raise TypeError("it has no hook: no function marked with @hookimpl of flops_fit_core")

    def _drop_plugins_with_unknown_hooks(self) -> None:
        for hook_name, hook in sorted(vars(self._pm.hook).items()):
            if hook_name.startswith("_"):
                continue
            for impl in list(hook.get_hookimpls()):
                if not hook.has_spec():
                    close = difflib.get_close_matches(hook_name, _hook_names(), n=1)
                    hint = f"; did you mean {close[0]}?" if close else ""
                    self._drop(impl.plugin_name, hook_name, NameError(f"there is no such hook{hint}"))
                elif impl.wrapper or impl.hookwrapper:
                    error = TypeError("hook wrappers are not supported: a plugin cannot see others' specs")
                    self._drop(impl.plugin_name, hook_name, error)

    def _collect(self) -> list[RegisteredSpec[Any]]:
        offers: list[RegisteredSpec[Any]] = []
        for plugin in sorted(self._sources):
            try:
                plugin_offers = list(self._offers_of(plugin))
            except _HookFailed as failure:
                self._drop(plugin, failure.hook, failure.error)
            else:
                offers += plugin_offers
        return offers

    def _offers_of(self, plugin: str) -> Iterator[RegisteredSpec[Any]]:
        for hook_name, spec_type in SPEC_TYPES.items():
            for impl in getattr(self._pm.hook, hook_name).get_hookimpls():
                if impl.plugin_name != plugin:
                    continue
                try:
                    with warn_if_slow(self._label(plugin), hook_name, plugin):
                        specs = _check_specs(impl.function(), spec_type)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    raise _HookFailed(hook_name, error) from error
                yield from (RegisteredSpec(spec, plugin, self._sources[plugin]) for spec in specs)

    def _drop(self, plugin: str, action: str, error: BaseException) -> None:
        if plugin in self._sources:
            self._add_problem(self._label(plugin), action, error)
            self._pm.unregister(name=plugin)
            del self._sources[plugin]

    def _label(self, plugin: str) -> str:
        return f"{plugin} ({self._sources[plugin]})"

    def _add_problem(self, plugin: str, action: str, error: BaseException, missing: Sequence[str] = ()) -> None:
        self.problems.append(PluginProblem(plugin, action, error, hint_for(error, missing)))


class ObjectPlugins(dict[str, object]):
    """A registry's plugins that are plain objects. The same process can use its registry; pickling drops it."""

    def __init__(self, objects: Mapping[str, object], registry: Registry) -> None:
        super().__init__(objects)
        self.registry = registry

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _HookFailed(Exception):
    def __init__(self, hook: str, error: BaseException) -> None:
        self.hook, self.error = hook, error


def _check_specs(returned: Any, spec_type: type[Spec]) -> list[Spec]:
    """The specs that a hook returned. Raises TypeError for other values, ValueError for duplicate names."""
    if isinstance(returned, Spec | str | Mapping):
        raise TypeError(f"expected an iterable of {spec_type.__name__}, got {returned!r}")
    specs = [] if returned is None else list(returned)
    for spec in specs:
        if not isinstance(spec, spec_type):
            raise TypeError(f"expected {spec_type.__name__}, got {spec!r}")
    counts = Counter(spec.name for spec in specs)
    if duplicates := sorted(name for name, count in counts.items() if count > 1):
        raise ValueError(f"offers {', '.join(map(repr, duplicates))} twice")
    return specs


def _hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("flops_fit_")]


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
