"""What a registry is made from and what it answers with."""

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
}
KINDS = tuple(spec.kind for spec in SPEC_TYPES.values())
S = TypeVar("S", bound=Spec)


class PluginSetup(Record):
    """Which plugins make a registry: enough to make the same one in another process."""

    modules: dict[str, str] = {}
    """Plugins that are not installed: plugin name -> import name of its module."""
    disabled: tuple[str, ...] = ()
    entry_points: bool = True
    paths: tuple[str, ...] = ()
    """Folders from which ``modules`` are imported, beside the usual ones."""


def message_of(error: BaseException) -> str:
    """The message of an exception that a plugin may have written."""
    try:
        return str(error)
    except Exception as failure:
        return f"(its message cannot be shown: {type(failure).__name__})"


@dataclass(frozen=True)
class PluginProblem:
    """A plugin that could not be used, and why."""

    plugin: str
    doing: str
    error: BaseException
    hint: str = ""
    """What to do about it, where that can be told."""

    def __str__(self) -> str:
        what = f"{self.plugin}: {self.doing}: {type(self.error).__name__}: {message_of(self.error)}"
        return f"{what} ({self.hint})" if self.hint else what


@dataclass(frozen=True)
class RegisteredSpec(Generic[S]):
    """One spec, the plugin that offers it, and the distribution that the plugin came with."""

    spec: S
    plugin: str
    source: str
    """``flops-fit 0.1.0``, or how else the plugin came here."""

    @property
    def name(self) -> str:
        """Qualified: ``optim/sgd``."""
        return f"{self.plugin}/{self.spec.name}"

    def missing(self) -> list[str]:
        """The spec's requirements that are not installed, without importing anything."""
        return [text for text in self.spec.requires if not is_installed(text)]

    def needs(self, missing: list[str]) -> str:
        """What to say, and to type, where requirements are missing."""
        dist = self.source.split(" ")[0]
        what = f"'{dist}[{self.spec.extra}]'" if self.spec.extra else " ".join(map(repr, missing))
        return f"{self.spec.kind} {self.spec.name!r} needs {' and '.join(missing)}: pip install {what}"
