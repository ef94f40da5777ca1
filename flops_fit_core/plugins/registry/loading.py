"""Loads plugins, isolates broken plugins and collects their specs."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import pluggy

from flops_fit_core.plugins import hookspecs
from flops_fit_core.plugins.registry import discovery
from flops_fit_core.plugins.registry.bundled import BUNDLED_KINDS
from flops_fit_core.plugins.registry.explaining import hint_for, warn_if_slow
from flops_fit_core.plugins.registry.law_offers import remember_laws
from flops_fit_core.plugins.registry.offers import SPEC_TYPES, PluginProblem, RegisteredSpec
from flops_fit_core.plugins.specs import Spec

_lock = threading.RLock()
"""Held while plugins are loaded: standard output is redirected for the whole process."""


def _renew_lock() -> None:
    """In a forked child, the thread that held the lock does not exist."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class PluginLoader:
    """The plugins of a registry and their specs. A bundled plugin is loaded with the first query for its kind.

    A plugin that cannot be imported, does not match the hooks, raises, or returns a wrong type is left out
    completely and recorded in ``problems``.
    """

    def __init__(self, disabled: Collection[str]) -> None:
        self.problems: list[PluginProblem] = []
        self.importing_torch: list[str] = []
        """Installed plugins that import torch when they are loaded."""
        self.sources: dict[str, str] = {}
        """Name of each loaded plugin -> its source."""
        self._disabled = disabled
        self._offers: dict[str, list[RegisteredSpec[Any]]] = {}
        self._waiting: dict[str, discovery.Installed] = {}
        """Bundled plugins that are not loaded yet, by name."""
        self._pm = pluggy.PluginManager(hookspecs.PROJECT)
        self._pm.add_hookspecs(hookspecs)

    def __getstate__(self) -> dict[str, Any]:
        """The state with all plugins loaded: another process may have other entry points."""
        self.load()
        return vars(self)

    # ------------------------------------------------------------------ queries

    def offers(self, kind: str | None = None) -> list[RegisteredSpec[Any]]:
        """The specs of a kind, or of all kinds, sorted by plugin."""
        self.load(kind)
        items = [offer for plugin in sorted(self._offers) for offer in self._offers[plugin]]
        return [offer for offer in items if kind in (None, offer.spec.kind)]

    def implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """The functions of loaded plugins for a hook. No bundled plugin is an observer."""
        functions: list[pluggy.HookImpl] = getattr(self._pm.hook, hook).get_hookimpls()
        return functions

    def label(self, plugin: str) -> str:
        """Name and source of a loaded plugin, for messages."""
        return f"{plugin} ({self.sources[plugin]})"

    # ------------------------------------------------------------------ loading

    def load(self, kind: str | None = None) -> None:
        """Load the bundled plugins of a kind, or all."""
        with _lock:
            self._load_waiting([name for name in self._waiting if kind is None or kind in BUNDLED_KINDS[name]])

    def add(
        self, plugins: Mapping[str, tuple[object, str]], *, entry_points: bool, excluded: Sequence[str] = ()
    ) -> None:
        """Load the installed plugins, and the given ones.

        Args:
            plugins: Name -> the plugin and its source.
            entry_points: Whether to discover installed plugins.
            excluded: Folders in which no metadata of installed plugins is read.
        """
        # Plugins may print when imported. Standard output must contain only the command's output.
        with _lock, contextlib.redirect_stdout(sys.stderr):
            if entry_points:
                passed = [plugin for name, (plugin, _) in plugins.items() if name not in self._disabled]
                self._load_entry_points(passed, excluded)
            for name, (plugin, source) in plugins.items():
                self._register(name, plugin, source)
            self._finish()

    def _load_waiting(self, names: Sequence[str]) -> None:
        is_collected = self.sources.keys() <= self._offers.keys()  # not after an interruption
        if not names and is_collected:
            return
        with contextlib.redirect_stdout(sys.stderr):
            for name in names:
                installed = self._waiting.pop(name, None)
                if installed is None:  # loaded by a query that the import of another plugin made
                    continue
                try:
                    self._load(name, installed, ())
                except KeyboardInterrupt:
                    if name not in self.sources:
                        self._waiting[name] = installed
                    raise
            self._finish()

    def _finish(self) -> None:
        """Collect the specs of the plugins that were registered since the last call."""
        self._drop_plugins_with_unknown_hooks()
        new = [plugin for plugin in sorted(self.sources) if plugin not in self._offers]
        for plugin in new:
            try:
                self._offers[plugin] = list(self._offers_of(plugin))
            except _HookFailed as failure:
                self._drop(plugin, failure.hook, failure.error)
        remember_laws(
            offer for plugin in new for offer in self._offers.get(plugin, ()) if offer.spec.kind == "law"
        )

    def _load_entry_points(self, passed: Sequence[object], excluded: Sequence[str]) -> None:
        """Load installed plugins, except those that are among the ``passed`` objects. Bundled ones wait."""
        candidates_by_name: dict[str, list[discovery.Installed]] = defaultdict(list)
        # A folder from which named modules are imported may have metadata of other modules.
        installed, broken = discovery.entry_points(excluded)
        for source, error in broken:
            self._add_problem(source, "read metadata", error)
        for candidate in installed:
            if candidate.point.name not in self._disabled:
                candidates_by_name[candidate.point.name].append(candidate)
        names = sorted(candidates_by_name)
        selected = {name: self._select(name, candidates_by_name[name]) for name in names}
        items = {name: item for name, item in selected.items() if item is not None}
        later = {name: item for name, item in items.items() if item.bundled and name in BUNDLED_KINDS}
        self._waiting |= later
        for name in sorted(items.keys() - later.keys()):
            self._load(name, items[name], passed)

    def _select(self, name: str, candidates: Sequence[discovery.Installed]) -> discovery.Installed | None:
        """The plugin with this name: the bundled one, or the only one. The others are problems."""
        selected = next((candidate for candidate in candidates if candidate.bundled), None)
        if selected is None and len(candidates) == 1:
            selected = candidates[0]
        for candidate in candidates:
            if candidate is not selected:
                rivals = " and ".join(rival.source for rival in candidates if rival is not candidate)
                clash = ValueError(f"the plugin name {name!r} is also claimed by {rivals}")
                self._add_problem(f"{name} ({candidate.source})", "register", clash)
        return selected

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
        if name in self._disabled:
            return
        if isinstance(plugin, ModuleType):
            self._load_waiting(
                [key for key, item in self._waiting.items() if item.point.module == plugin.__name__]
            )
        if name in self._waiting:
            self._load_waiting([name])
        if name in self.sources:
            clash = ValueError(f"the name is already taken by {self.sources[name]}")
            self._add_problem(f"{name} ({source})", "register", clash)
            return
        if registered := self._pm.get_name(plugin):
            clash = ValueError(f"this plugin is already registered as {self.label(registered)}; use one name")
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
            self.sources[name] = source

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

    def _offers_of(self, plugin: str) -> Iterator[RegisteredSpec[Any]]:
        for hook_name, spec_type in SPEC_TYPES.items():
            for impl in getattr(self._pm.hook, hook_name).get_hookimpls():
                if impl.plugin_name != plugin:
                    continue
                try:
                    with warn_if_slow(self.label(plugin), hook_name, plugin):
                        specs = _check_specs(impl.function(), spec_type)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    raise _HookFailed(hook_name, error) from error
                yield from (RegisteredSpec(spec, plugin, self.sources[plugin]) for spec in specs)

    def _drop(self, plugin: str, action: str, error: BaseException) -> None:
        if plugin in self.sources:
            self._add_problem(self.label(plugin), action, error)
            self._pm.unregister(name=plugin)
            del self.sources[plugin]

    def _add_problem(self, plugin: str, action: str, error: BaseException, missing: Sequence[str] = ()) -> None:
        self.problems.append(PluginProblem(plugin, action, error, hint_for(error, missing)))


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
