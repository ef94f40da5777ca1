"""A plugin with its options, as a field of an experiment."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Generic, ParamSpec, TypeVar

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from flops_fit_core.config.explaining import explain
from flops_fit_core.errors import ConfigError, FlopsFitError, PluginError, raised_at
from flops_fit_core.plugins.options import Options, identity_options, runtime_options
from flops_fit_core.plugins.registry import RegisteredSpec, Registry, installed
from flops_fit_core.plugins.specs import (
    DatasetSpec,
    DeviceSpec,
    ExecutorSpec,
    FitterSpec,
    FlopCounterSpec,
    LoggerSpec,
    ModelSpec,
    OptimizerSpec,
    RecipeSpec,
    ScheduleSpec,
    Spec,
    StoreSpec,
    TrainerSpec,
)
from flops_fit_core.records import PluginChoice

P = ParamSpec("P")
S = TypeVar("S", bound=Spec)
T = TypeVar("T")

DEFAULTS: Mapping[str, str] = {
    "optimizer": "optim/sgd",
    "schedule": "schedules/cosine",
    "recipe": "recipes/width-scaled",
    "counter": "counters/chinchilla",
    "trainer": "trainers/torch",
    "device": "devices/auto",
    "store": "stores/sqlite",
    "executor": "executors/processes",
    "fitter": "fitters/average",
}
"""Default plugin of each kind. The names are qualified, because another plugin may also offer an ``sgd``."""


@dataclass(frozen=True, eq=False)
class PluginConfig(Generic[S]):
    """A plugin chosen by name, with validated options. Configs are equal if names and options are."""

    offer: RegisteredSpec[S]
    options: Options
    registry: Registry | None = field(default=None, repr=False)
    """Where to look up other plugins if the user named none and the default depends on the dataset's task."""

    @property
    def name(self) -> str:
        """Qualified name, ``optim/sgd``."""
        return self.offer.name

    @property
    def spec(self) -> S:
        return self.offer.spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PluginConfig) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self.name)

    def _key(self) -> tuple[str, Any]:
        return self.name, self.options.model_dump(mode="json")

    @property
    def depends_on_task(self) -> bool:
        """Whether the planner may choose another plugin for the dataset's task, because the user named none."""
        return self.registry is not None

    def instead(self, name: str) -> PluginConfig[S]:
        """Another plugin of the kind with the options that the user set. Raises pydantic's ValidationError."""
        registry = self.registry or installed()
        offer = registry.find(self.spec.kind, name)
        return PluginConfig(offer, offer.spec.options.model_validate(self.options.model_dump(exclude_unset=True)))

    def with_options(self, /, **changes: Any) -> PluginConfig[S]:
        """The same plugin with some options changed, validated again. Raises pydantic's ValidationError."""
        options = self.spec.options.model_validate({**self.options.model_dump(exclude_unset=True), **changes})
        return PluginConfig(self.offer, options, self.registry)

    def unset(self, option: str) -> bool:
        """Whether the plugin has this option and the user did not set it."""
        return option in type(self.options).model_fields and option not in self.options.model_fields_set

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """``function(*args, **kwargs)`` for a function of the spec, such as ``chosen.spec.build``.

        Raises PluginError, which names the plugin, for every exception that is no FlopsFitError.
        """
        with self._naming_plugin(function, args):
            return function(*args, **kwargs)

    def call_all(self, function: Callable[P, Iterable[T]], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Like :meth:`call`, for a function that returns or yields items. Returns the items."""
        with self._naming_plugin(function, args):
            return list(function(*args, **kwargs))

    @contextmanager
    def _naming_plugin(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[None]:
        try:
            yield
        except FlopsFitError:
            raise
        except Exception as error:
            names = (field.name for field in fields(self.spec) if getattr(self.spec, field.name) is function)
            shown = ", ".join(repr(arg) for arg in args if isinstance(arg, Options)) or "..."
            line = raised_at("".join(traceback.format_exception(error)))
            raise PluginError(
                f"{self.spec.kind} {self.name!r} ({self.offer.source}): {next(names, 'build')}({shown}): "
                f"{type(error).__name__}: {error}" + (f" ({line})" if line else "")
            ) from error

    @property
    def choice(self) -> PluginChoice:
        """The record that is part of a run's id."""
        return PluginChoice(name=self.name, options=identity_options(self.options), revision=self.spec.revision)

    @property
    def runtime(self) -> dict[str, JsonValue]:
        """The options that do not change a run's result."""
        return runtime_options(self.options)


def choose(
    kind: str,
    choice: PluginChoice,
    registry: Registry,
    runtime: Mapping[str, JsonValue] | None = None,
) -> PluginConfig[Any]:
    """Restore a plugin with its options from a record.

    Raises PluginNotFound, pydantic's ValidationError, or PluginError if the installed plugin has another revision
    than the record.
    """
    offer = registry.find(kind, choice.name)
    if offer.spec.revision != choice.revision:
        raise PluginError(
            f"{kind} {choice.name!r} was planned at revision {choice.revision}, but {offer.source} has revision "
            f"{offer.spec.revision}: plan again, or install the version with which it was planned"
        )
    return PluginConfig(offer, offer.spec.options.model_validate({**choice.options, **(runtime or {})}))


def choose_from_table(kind: str, value: Any, registry: Registry, origin: str) -> PluginConfig[Any]:
    """Validate a choice from an experiment file: a name, or a table with a name and options.

    Raises ConfigError, which names the key of each mistake.
    """
    adapter = TypeAdapter(Annotated[PluginConfig[Any], _Pick(kind, DEFAULTS.get(kind))])
    try:
        chosen: PluginConfig[Any] = adapter.validate_python(value, context={"registry": registry})
    except ValidationError as error:
        raise ConfigError(f"{origin}: [{kind}]:\n{explain(error)}") from None
    return chosen


@dataclass(frozen=True)
class _Pick:
    """Marks a field as a choice among the plugins of one kind."""

    kind: str
    default: str | Callable[[ValidationInfo], str] | None = None
    """The name if the user wrote none: no table, or a table without ``name``."""
    by_task: bool = False
    """Whether the planner replaces the default by one for the dataset's task."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._choose, serialization=core_schema.plain_serializer_function_ser_schema(_dump)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        table = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        return {"anyOf": [{"type": "string"}, table], "description": f"a {self.kind} plugin and its options"}

    def _choose(self, value: Any, info: ValidationInfo) -> PluginConfig[Any]:
        if isinstance(value, PluginConfig):
            return value
        if isinstance(value, str):
            value = {"name": value}
        unnamed = value is None or (isinstance(value, dict) and "name" not in value)
        by_task = False
        if self.default is not None and unnamed:
            by_task = self.by_task
            name = self.default if isinstance(self.default, str) else self.default(info)
            value = {"name": name, **(value or {})}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            advice = 'write a name, or a table: {name = "...", option = ...}'
            raise PydanticCustomError("choice", "{advice}", {"advice": advice})
        registry: Registry = (info.context or {}).get("registry") or installed()
        try:
            offer = registry.find(self.kind, value["name"])
        except ConfigError as error:
            raise PydanticCustomError("plugin", "{reason}", {"reason": str(error)}) from None
        options = {key: item for key, item in value.items() if key != "name"}
        chosen = offer.spec.options.model_validate(options, context=info.context)
        return PluginConfig(offer, chosen, registry if by_task else None)


def _dump(chosen: Any) -> Any:
    if not isinstance(chosen, PluginConfig):  # a default's name, in a JSON schema
        return chosen
    options = chosen.options.model_dump(mode="json", exclude_unset=True)
    return options if chosen.depends_on_task else {"name": chosen.name, **options}


def _optimizer_of_model(info: ValidationInfo) -> str:
    """The model family's, in an experiment file. Python objects keep SGD."""
    model = info.data.get("model")
    from_file = (info.context or {}).get("from_file", False)
    if not from_file or model is None:
        return DEFAULTS["optimizer"]
    return model.spec.optimizer or DEFAULTS["optimizer"]


def _schedule_of_optimizer(info: ValidationInfo) -> str:
    optimizer = info.data.get("optimizer")
    return (optimizer.spec.schedule if optimizer is not None else None) or DEFAULTS["schedule"]


def _trainer_of_dataset(info: ValidationInfo) -> str:
    dataset = info.data.get("dataset")
    return (dataset.spec.trainer if dataset is not None else None) or DEFAULTS["trainer"]


ModelChoice = Annotated[PluginConfig[ModelSpec], _Pick("model")]
DatasetChoice = Annotated[PluginConfig[DatasetSpec], _Pick("dataset")]
OptimizerChoice = Annotated[PluginConfig[OptimizerSpec], _Pick("optimizer", _optimizer_of_model)]
ScheduleChoice = Annotated[PluginConfig[ScheduleSpec], _Pick("schedule", _schedule_of_optimizer)]
RecipeChoice = Annotated[PluginConfig[RecipeSpec], _Pick("recipe", DEFAULTS["recipe"])]
FlopCounterChoice = Annotated[PluginConfig[FlopCounterSpec], _Pick("counter", DEFAULTS["counter"], by_task=True)]
TrainerChoice = Annotated[PluginConfig[TrainerSpec], _Pick("trainer", _trainer_of_dataset)]
DeviceChoice = Annotated[PluginConfig[DeviceSpec], _Pick("device", DEFAULTS["device"])]
StoreChoice = Annotated[PluginConfig[StoreSpec], _Pick("store", DEFAULTS["store"])]
ExecutorChoice = Annotated[PluginConfig[ExecutorSpec], _Pick("executor", DEFAULTS["executor"])]
LoggerChoice = Annotated[PluginConfig[LoggerSpec], _Pick("logger")]
FitterChoice = Annotated[PluginConfig[FitterSpec], _Pick("fitter", DEFAULTS["fitter"])]
