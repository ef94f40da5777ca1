"""The setup of a registry, and the specs and problems that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from flops_fit_core.plugins import specs
from flops_fit_core.plugins.registry.discovery import is_installed
from flops_fit_core.plugins.specs import Spec
from flops_fit_core.records import Record

SPEC_TYPES: Mapping[str, type[Spec]] = {
    "flops_fit_models": specs.ModelSpec,
    "flops_fit_datasets": specs.DatasetSpec,
    "flops_fit_optimizers": specs.OptimizerSpec,
    "flops_fit_schedules": specs.ScheduleSpec,
    "flops_fit_recipes": specs.RecipeSpec,
    "flops_fit_flop_counters": specs.FlopCounterSpec,
    "flops_fit_stores": specs.StoreSpec,
    "flops_fit_devices": specs.DeviceSpec,
    "flops_fit_trainers": specs.TrainerSpec,
    "flops_fit_executors": specs.ExecutorSpec,
    "flops_fit_loggers": specs.LoggerSpec,
    "flops_fit_fitters": specs.FitterSpec,
    "flops_fit_laws": specs.LawSpec,
    "flops_fit_readers": specs.ReaderSpec,
}
KINDS = tuple(spec.kind for spec in SPEC_TYPES.values())
S = TypeVar("S", bound=Spec)


class PluginSetup(Record):
    """The plugins of a registry, from which another process can create an equal registry."""

    modules: dict[str, str] = {}
    """Plugins that are not installed: plugin name -> import name of the module."""
    disabled: tuple[str, ...] = ()
    entry_points: bool = True
    paths: tuple[str, ...] = ()
    """Folders from which ``modules`` are imported, in addition to Python's path."""


def message_of(error: BaseException) -> str:
    """The message of an exception. The class may come from a plugin, and its ``__str__`` may raise."""
    try:
        return str(error)
    except Exception as failure:
        return f"(its message cannot be shown: {type(failure).__name__})"


@dataclass(frozen=True)
class PluginProblem:
    """A plugin that cannot be used, and the reason."""

    plugin: str
    action: str
    """The step that failed: ``import``, ``register`` or the name of a hook."""
    error: BaseException
    hint: str = ""
    """Advice on how to fix it; empty if there is none."""

    def __str__(self) -> str:
        text = f"{self.plugin}: {self.action}: {type(self.error).__name__}: {message_of(self.error)}"
        return f"{text} ({self.hint})" if self.hint else text


@dataclass(frozen=True)
class RegisteredSpec(Generic[S]):
    """A spec, the plugin that offers it, and the distribution of the plugin."""

    spec: S
    plugin: str
    source: str
    """Name and version of the distribution, ``flops-fit 0.1.0``, or another origin of the plugin."""

    @property
    def name(self) -> str:
        """Qualified: ``optim/sgd``."""
        return f"{self.plugin}/{self.spec.name}"

    def missing(self) -> list[str]:
        """The spec's requirements that are not installed, without importing anything."""
        return [text for text in self.spec.requires if not is_installed(text)]

    def install_message(self, missing: list[str]) -> str:
        """The error message for missing requirements, with the command that installs them."""
        dist = self.source.split(" ")[0]
        packages = f"'{dist}[{self.spec.extra}]'" if self.spec.extra else " ".join(map(repr, missing))
        return f"{self.spec.kind} {self.spec.name!r} needs {' and '.join(missing)}: pip install {packages}"
