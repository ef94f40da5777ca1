"""Finds plugins, isolates the broken ones and answers "which spec has this name?"."""

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
from types import ModuleType
from typing import Any

import pluggy

from flops_fit_core.errors import ConfigError, PluginNotFound
from flops_fit_core.plugins import hookspecs
from flops_fit_core.plugins.registry import discovery
from flops_fit_core.plugins.registry.explaining import hint_for, speaking_up
from flops_fit_core.plugins.registry.offers import SPEC_TYPES, PluginProblem, PluginSetup, RegisteredSpec
from flops_fit_core.plugins.renamed import explain_plugin
from flops_fit_core.plugins.specs import Spec
from flops_fit_core.records import RunResult, RunSpec, SweepPlan

logger = logging.getLogger("flops_fit")


class Registry:
    """Everything the plugins offer. Complete once constructed, and read-only from then on.

    Args:
        plugins: Plugins that are not installed: name -> module, or any object with hook implementations.
        entry_points: Whether to discover installed plugins.
        disabled: Names of plugins not even to import, beside those in ``FLOPS_FIT_DISABLE``.
        paths: Folders that :attr:`setup` records, for workers that have to import ``plugins`` again.

    A plugin that cannot be imported, does not fit the hooks, raises, or returns something else than it
    should is left out as a whole and noted in :attr:`problems`; all others work. One that is both given and
    installed counts once, as given: a study that was made with a module goes on after that is installed.
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
        """Installed plugins that imported torch when they were discovered, so that every command waits for it."""
        self.disabled = frozenset(disabled) | _disabled_by_environment()
        self.setup = PluginSetup(
            modules={name: it.__name__ for name, it in plugins.items() if isinstance(it, ModuleType)},
            disabled=tuple(sorted(self.disabled)),
            entry_points=entry_points,
            paths=tuple(paths),
        )
        given = {name: it for name, it in plugins.items() if not isinstance(it, ModuleType)}
        self.objects: Mapping[str, object] = ObjectPlugins(given, self)
        """Plugins that are plain objects; they reach another process by cloudpickle only."""
        self._sources: dict[str, str] = {}
        self._pm = pluggy.PluginManager(hookspecs.PROJECT)
        self._pm.add_hookspecs(hookspecs)
        # Plugins may print when imported; standard output is for what the user asked for.
        with contextlib.redirect_stdout(sys.stderr):
            if entry_points:
                self._load_entry_points([it for name, it in plugins.items() if name not in self.disabled])
            for name, plugin in plugins.items():
                self._register(name, plugin, source=_origin(plugin))
            self._drop_plugins_with_unknown_hooks()
            self._offers = self._collect()

    def with_plugins(self, plugins: Mapping[str, object]) -> Registry:
        """A new registry that has these plugins as well."""
        modules = {name: importlib.import_module(module) for name, module in self.setup.modules.items()}
        return Registry(
            {**modules, **self.objects, **plugins},
            entry_points=self.setup.entry_points,
            disabled=self.setup.disabled,
            paths=self.setup.paths,
        )

    # ------------------------------------------------------------------ asking

    @property
    def plugins(self) -> dict[str, str]:
        """Name of each usable plugin -> where it came from."""
        return dict(sorted(self._sources.items()))

    def offers(self, kind: str | None = None) -> list[RegisteredSpec[Any]]:
        """What is offered, of one kind or of all."""
        return [offer for offer in self._offers if kind in (None, offer.spec.kind)]

    def find(self, kind: str, name: str) -> RegisteredSpec[Any]:
        """The offer called ``name``, or ``plugin/name`` where two plugins offer the same name.

        Raises PluginNotFound for an unknown or ambiguous name, ConfigError for an offer whose
        requirements are not installed.
        """
        plugin, _, bare = name.rpartition("/")
        found = [offer for offer in self.offers(kind) if offer.spec.name == bare and plugin in ("", offer.plugin)]
        if not found:
            raise PluginNotFound(self._not_found(kind, name))
        if len(found) > 1:
            ways = " or ".join(repr(offer.name) for offer in found)
            raise PluginNotFound(f"{len(found)} plugins offer a {kind} named {bare!r}; write {ways}")
        if missing := found[0].missing():
            raise ConfigError(found[0].needs(missing))
        return found[0]

    def _not_found(self, kind: str, name: str) -> str:
        if advice := explain_plugin(kind, name):
            return advice
        offers = self.offers(kind)
        names = sorted({offer.spec.name for offer in offers} | {offer.name for offer in offers if "/" in name})
        message = f"no {kind} named {name!r}; there is: {', '.join(names) or 'none'}"
        if close := difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5):
            message += f". Did you mean {close[0]!r}?"
        for problem in self.problems:
            message += f"\n  not usable: {problem}"
        for plugin in sorted(self.disabled):
            message += f"\n  disabled: {plugin}"
        return message

    # ------------------------------------------------------------------ observers

    def run_finished(self, run: RunSpec, result: RunResult) -> None:
        """Tell every observer; what one raises is logged."""
        self._tell("flops_fit_run_finished", run=run, result=result)

    def sweep_finished(self, plan: SweepPlan, results: Sequence[RunResult]) -> None:
        """Tell every observer; what one raises is logged."""
        self._tell("flops_fit_sweep_finished", plan=plan, results=results)

    def _tell(self, hook_name: str, **arguments: Any) -> None:
        for impl in getattr(self._pm.hook, hook_name).get_hookimpls():
            try:
                impl.function(*(arguments[name] for name in impl.argnames))
            except KeyboardInterrupt:
                raise
            except BaseException:
                logger.exception("plugin %s: %s", self._label(impl.plugin_name), hook_name)

    # ------------------------------------------------------------------ discovery

    def _load_entry_points(self, given: Sequence[object]) -> None:
        claims: dict[str, list[discovery.Installed]] = defaultdict(list)
        found, broken = discovery.entry_points()
        for source, error in broken:
            self._note(source, "read what is installed", error)
        for one in found:
            claims[one.point.name].append(one)
        for name, claimants in sorted(claims.items()):
            if name in self.disabled:
                continue
            keeper = next((one for one in claimants if one.bundled), None)
            if keeper is None and len(claimants) == 1:
                keeper = claimants[0]
            for one in claimants:
                if one is not keeper:
                    others = " and ".join(other.source for other in claimants if other is not one)
                    clash = ValueError(f"the plugin name {name!r} is also claimed by {others}")
                    self._note(f"{name} ({one.source})", "register", clash)
            if keeper is not None:
                self._load(name, keeper, given)

    def _load(self, name: str, installed: discovery.Installed, given: Sequence[object]) -> None:
        label = f"{name} ({installed.source})"
        if unfit := installed.unfit():
            self._note(label, "register", RuntimeError(unfit))
            return
        try:
            if not installed.point.pattern.match(installed.point.value):
                raise ValueError(f"its entry point {name} = {installed.point.value} names no module")
            before = "torch" in sys.modules
            with speaking_up(label, "import", name):
                plugin = installed.point.load()
            if not before and "torch" in sys.modules:
                self.importing_torch.append(label)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit; the panics of Rust's extensions
            self._note(label, "import", error, installed.missing())
        else:
            if installed.bundled or not any(plugin is it for it in given):
                self._register(name, plugin, installed.source)

    def _register(self, name: str, plugin: object, source: str) -> None:
        if name in self.disabled:
            return
        if name in self._sources:
            clash = ValueError(f"the name is already taken by {self._sources[name]}")
            self._note(f"{name} ({source})", "register", clash)
            return
        if other := self._pm.get_name(plugin):
            twice = ValueError(f"this is the plugin {self._label(other)}, too; one name is enough")
            self._note(f"{name} ({source})", "register", twice)
            return
        try:
            self._pm.register(plugin, name)
            self._check_hooks(plugin)
        except Exception as error:
            # Before 1.7, pluggy keeps the hooks it had accepted when a later one does not match.
            self._pm.unregister(name=name)
            self._note(f"{name} ({source})", "register", error)
        else:
            self._sources[name] = source

    def _check_hooks(self, plugin: object) -> None:
        """Raises TypeError for a plugin whose author forgot to mark a hook: nothing would be found of it."""
        marked = {hook.name for hook in self._pm.get_hookcallers(plugin) or ()}
        there = {name for name in dir(plugin) if name in _hook_names() and callable(getattr(plugin, name))}
        if forgotten := sorted(there - marked):
            raise TypeError(f"{', '.join(forgotten)}: not marked with @hookimpl of flops_fit_core")
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
                    refused = TypeError("hook wrappers are not supported: a plugin cannot see others' specs")
                    self._drop(impl.plugin_name, hook_name, refused)

    def _collect(self) -> list[RegisteredSpec[Any]]:
        offers: list[RegisteredSpec[Any]] = []
        for plugin in sorted(self._sources):
            try:
                found = list(self._offers_of(plugin))
            except _HookFailed as failed:
                self._drop(plugin, failed.hook, failed.error)
            else:
                offers += found
        return offers

    def _offers_of(self, plugin: str) -> Iterator[RegisteredSpec[Any]]:
        for hook_name, spec_type in SPEC_TYPES.items():
            for impl in getattr(self._pm.hook, hook_name).get_hookimpls():
                if impl.plugin_name != plugin:
                    continue
                try:
                    with speaking_up(self._label(plugin), hook_name, plugin):
                        found = _checked(impl.function(), spec_type)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    raise _HookFailed(hook_name, error) from error
                yield from (RegisteredSpec(spec, plugin, self._sources[plugin]) for spec in found)

    def _drop(self, plugin: str, doing: str, error: BaseException) -> None:
        if plugin in self._sources:
            self._note(self._label(plugin), doing, error)
            self._pm.unregister(name=plugin)
            del self._sources[plugin]

    def _label(self, plugin: str) -> str:
        return f"{plugin} ({self._sources[plugin]})"

    def _note(self, plugin: str, doing: str, error: BaseException, missing: Sequence[str] = ()) -> None:
        self.problems.append(PluginProblem(plugin, doing, error, hint_for(error, missing)))


class ObjectPlugins(dict[str, object]):
    """A registry's plugins that are plain objects, and the registry itself for those who are in its process."""

    def __init__(self, objects: Mapping[str, object], registry: Registry) -> None:
        super().__init__(objects)
        self.registry = registry

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _HookFailed(Exception):
    def __init__(self, hook: str, error: BaseException) -> None:
        self.hook, self.error = hook, error


def _checked(returned: Any, spec_type: type[Spec]) -> list[Spec]:
    if isinstance(returned, Spec | str | Mapping):
        raise TypeError(f"expected an iterable of {spec_type.__name__}, got {returned!r}")
    found = [] if returned is None else list(returned)
    for spec in found:
        if not isinstance(spec, spec_type):
            raise TypeError(f"expected {spec_type.__name__}, got {spec!r}")
    counts = Counter(spec.name for spec in found)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ValueError(f"offers {', '.join(map(repr, twice))} twice")
    return found


def _hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("flops_fit_")]


def _origin(plugin: object) -> str:
    if isinstance(plugin, ModuleType):
        return f"module {plugin.__name__}"
    where = inspect.getmodule(type(plugin))
    return f"passed in ({where.__name__ if where else 'unknown'}.{type(plugin).__qualname__})"


def _disabled_by_environment() -> frozenset[str]:
    names = os.environ.get("FLOPS_FIT_DISABLE", "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def registry_from(setup: PluginSetup, objects: Mapping[str, object] | None = None) -> Registry:
    """The registry that ``setup`` describes: the one in this process that the objects come from, or one that is
    made now.

    Raises ConfigError where one of its modules cannot be imported. Disabled ones are not imported.
    """
    if isinstance(objects, ObjectPlugins) and objects.registry.setup == setup:
        return objects.registry
    for path in reversed(setup.paths):
        if path not in sys.path:
            sys.path.insert(0, path)
    plugins: dict[str, object] = {}
    disabled = _disabled_by_environment().union(setup.disabled)
    for name, module in setup.modules.items():
        if name in disabled:
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr), speaking_up(f"module {module}", "import", name):
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
