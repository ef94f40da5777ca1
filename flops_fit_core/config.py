"""An experiment file (TOML, JSON or YAML) as typed choices of plugins.

One table a kind of plugin: ``name`` chooses the plugin, the rest are its typed options. A bare string is a
name without options.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from flops_fit_core.errors import ConfigError, PluginError
from flops_fit_core.records import PluginChoice, Positive
from flops_fit_core.registry import Offer, Registry, installed
from flops_fit_core.specs import (
    DatasetSpec,
    DeviceSpec,
    ExecutorSpec,
    FitterSpec,
    FlopCounterSpec,
    LoggerSpec,
    ModelSpec,
    OptimizerSpec,
    Options,
    RecipeSpec,
    ScheduleSpec,
    Spec,
    StoreSpec,
    Table,
    TrainerSpec,
    identity_options,
    runtime_options,
)

S = TypeVar("S", bound=Spec)

DEFAULTS: Mapping[str, str] = {
    "optimizer": "optim/sgd",
    "schedule": "schedules/cosine",
    "recipe": "recipes/default",
    "flops": "flops/chinchilla",
    "trainer": "trainers/torch",
    "device": "devices/auto",
    "store": "stores/sqlite",
    "executor": "executors/local",
    "fitter": "fitters/isoflop",
}
"""What an experiment uses of each kind unless it names something else. Qualified, so that no other plugin's
``sgd`` makes it ambiguous."""


# ---------------------------------------------------------------------------- a choice of plugin


@dataclass(frozen=True, eq=False)
class Chosen(Generic[S]):
    """One plugin, picked by name, with its validated options. Equal by name and options."""

    offer: Offer[S]
    options: Options

    @property
    def name(self) -> str:
        """Qualified: ``optim/sgd``."""
        return self.offer.name

    @property
    def spec(self) -> S:
        return self.offer.spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chosen) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self.name)

    def _key(self) -> tuple[str, Any]:
        return self.name, self.options.model_dump(mode="json")

    def with_options(self, /, **changes: Any) -> Chosen[S]:
        """The same plugin with some options changed, validated again. Raises pydantic's ValidationError."""
        given = self.options.model_dump(exclude_unset=True)
        return Chosen(self.offer, self.spec.options.model_validate({**given, **changes}))

    def unset(self, option: str) -> bool:
        """Whether the plugin has this option and the user left it alone."""
        return option in type(self.options).model_fields and option not in self.options.model_fields_set

    @property
    def choice(self) -> PluginChoice:
        """What identifies a run."""
        return PluginChoice(name=self.name, options=identity_options(self.options), revision=self.spec.revision)

    @property
    def runtime(self) -> dict[str, JsonValue]:
        """The options that change how a run is done but not its result."""
        return runtime_options(self.options)


def choose(
    kind: str,
    choice: PluginChoice,
    registry: Registry,
    runtime: Mapping[str, JsonValue] | None = None,
) -> Chosen[Any]:
    """The choice of a record, made again in this process.

    Raises PluginNotFound, pydantic's ValidationError, or PluginError where the installed plugin's revision
    is not the one that the record was made with.
    """
    offer = registry.find(kind, choice.name)
    if offer.spec.revision != choice.revision:
        raise PluginError(
            f"{kind} {choice.name!r} was planned at revision {choice.revision}, and {offer.source} here has "
            f"revision {offer.spec.revision}: plan again, or install the version it was planned with"
        )
    return Chosen(offer, offer.spec.options.model_validate({**choice.options, **(runtime or {})}))


def choose_from_table(kind: str, value: Any, registry: Registry, where: str) -> Chosen[Any]:
    """A choice as an experiment file writes it: a name, or a table of a name and options.

    Raises ConfigError with the place of each mistake.
    """
    adapter = TypeAdapter(Annotated[Chosen[Any], _Pick(kind, DEFAULTS.get(kind))])
    try:
        chosen: Chosen[Any] = adapter.validate_python(value, context={"registry": registry})
    except ValidationError as error:
        raise ConfigError(f"{where}: [{kind}]:\n{explain(error)}") from None
    return chosen


@dataclass(frozen=True)
class _Pick:
    """Marks a field as a choice among the plugins of one kind."""

    kind: str
    default: str | Callable[[ValidationInfo], str] | None = None
    """The name where the user gave none: neither a table, nor a ``name`` in it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._choose, serialization=core_schema.plain_serializer_function_ser_schema(_dump)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        table = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        return {"anyOf": [{"type": "string"}, table], "description": f"a {self.kind} plugin and its options"}

    def _choose(self, value: Any, info: ValidationInfo) -> Chosen[Any]:
        if isinstance(value, Chosen):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if self.default is not None and (value is None or (isinstance(value, dict) and "name" not in value)):
            name = self.default if isinstance(self.default, str) else self.default(info)
            value = {"name": name, **(value or {})}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            advice = 'give a name, or a table: {name = "...", option = ...}'
            raise PydanticCustomError("choice", "{advice}", {"advice": advice})
        registry: Registry = (info.context or {}).get("registry") or installed()
        try:
            offer = registry.find(self.kind, value["name"])
        except ConfigError as error:
            raise PydanticCustomError("plugin", "{reason}", {"reason": str(error)}) from None
        options = {key: item for key, item in value.items() if key != "name"}
        return Chosen(offer, offer.spec.options.model_validate(options, context=info.context))


def _dump(chosen: Any) -> Any:
    if not isinstance(chosen, Chosen):  # the default's name, when a JSON schema shows it
        return chosen
    return {"name": chosen.name, **chosen.options.model_dump(mode="json", exclude_unset=True)}


def _trainer_of_dataset(info: ValidationInfo) -> str:
    dataset = info.data.get("dataset")
    return (dataset.spec.trainer if dataset is not None else None) or DEFAULTS["trainer"]


ModelChoice = Annotated[Chosen[ModelSpec], _Pick("model")]
DatasetChoice = Annotated[Chosen[DatasetSpec], _Pick("dataset")]
OptimizerChoice = Annotated[Chosen[OptimizerSpec], _Pick("optimizer", DEFAULTS["optimizer"])]
ScheduleChoice = Annotated[Chosen[ScheduleSpec], _Pick("schedule", DEFAULTS["schedule"])]
RecipeChoice = Annotated[Chosen[RecipeSpec], _Pick("recipe", DEFAULTS["recipe"])]
FlopCounterChoice = Annotated[Chosen[FlopCounterSpec], _Pick("flops", DEFAULTS["flops"])]
TrainerChoice = Annotated[Chosen[TrainerSpec], _Pick("trainer", _trainer_of_dataset)]
DeviceChoice = Annotated[Chosen[DeviceSpec], _Pick("device", DEFAULTS["device"])]
StoreChoice = Annotated[Chosen[StoreSpec], _Pick("store", DEFAULTS["store"])]
ExecutorChoice = Annotated[Chosen[ExecutorSpec], _Pick("executor", DEFAULTS["executor"])]
LoggerChoice = Annotated[Chosen[LoggerSpec], _Pick("logger")]
FitterChoice = Annotated[Chosen[FitterSpec], _Pick("fitter", DEFAULTS["fitter"])]


# ---------------------------------------------------------------------------- the experiment


class Sweep(Table):
    """Which models to train, and for how long."""

    budgets: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Training FLOPs C of each IsoFLOP profile, counted by ``[flops]``."""
    sizes: Annotated[
        Annotated[PositiveInt, Tag("[count]")]
        | Annotated[tuple[dict[str, JsonValue], ...], Field(min_length=1), Tag("[tables]")],
        Discriminator(lambda given: "[tables]" if isinstance(given, list | tuple) else "[count]"),
    ] = 6
    """How many sizes each budget gets from a common log-spaced ladder; or a list of tables of model
    options, each merged over ``[model]``, all of which every budget gets."""
    size_ratio: Annotated[float, Field(gt=1)] = 1.6
    """N of one rung of the ladder over N of the rung below."""
    tokens_per_param: Positive = 20.0
    """A guess of D / N at the optimum, which centres each budget's sizes."""
    previous_fit: str | None = None
    """A fit's JSON file; its N_opt(C) centres the sizes instead of ``tokens_per_param``."""
    multiple_of: PositiveInt | None = None
    """Sizes are multiples of this; unset, what the family asks for."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    batch_size: PositiveInt | None = None
    """Samples a step for every run; unset, the recipe decides."""
    min_steps: PositiveInt = 100
    """A size that a budget could train for fewer steps than this is skipped."""
    repeat: bool = False
    """Whether a run may see the training data more than once."""

    @field_validator("budgets")
    @classmethod
    def _ascending(cls, budgets: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(budgets)))

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("the same seed twice is the same run twice")
        return seeds


class Experiment(Table):
    """One scaling-law experiment, fully described."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = "experiment"
    """Also the name of the study's folder under ``runs/``."""
    sweep: Sweep
    model: ModelChoice
    dataset: DatasetChoice
    optimizer: OptimizerChoice = DEFAULTS["optimizer"]  # type: ignore[assignment]
    schedule: ScheduleChoice = DEFAULTS["schedule"]  # type: ignore[assignment]
    recipe: RecipeChoice = DEFAULTS["recipe"]  # type: ignore[assignment]
    flops: FlopCounterChoice = DEFAULTS["flops"]  # type: ignore[assignment]
    trainer: TrainerChoice = None  # type: ignore[assignment]
    device: DeviceChoice = DEFAULTS["device"]  # type: ignore[assignment]
    store: StoreChoice = DEFAULTS["store"]  # type: ignore[assignment]
    executor: ExecutorChoice = DEFAULTS["executor"]  # type: ignore[assignment]
    loggers: tuple[LoggerChoice, ...] = ()
    fitter: FitterChoice = DEFAULTS["fitter"]  # type: ignore[assignment]

    @model_validator(mode="after")
    def _sizes_fit_the_model(self) -> Experiment:
        for index, changes in enumerate(self.sweep.sizes if isinstance(self.sweep.sizes, tuple) else ()):
            try:
                self.model.with_options(**changes)
            except ValidationError as error:
                raise _moved(error, ("sweep", "sizes", index)) from None
        return self


def _moved(error: ValidationError, under: tuple[str | int, ...]) -> ValidationError:
    return ValidationError.from_exception_data(
        error.title,
        [
            {
                "type": PydanticCustomError("moved", "{text}", {"text": line["msg"]}),
                "loc": (*under, *line["loc"]),
                "input": line["input"],
            }
            for line in error.errors()
        ],
    )


# ---------------------------------------------------------------------------- reading


def make_experiment(data: Mapping[str, Any], registry: Registry, where: str = "experiment") -> Experiment:
    """Validate an experiment given as plain data.

    Raises ConfigError that lists every mistake with its place (``optimizer.lr``), and what exists.
    """
    try:
        return Experiment.model_validate(dict(data), context={"registry": registry})
    except ValidationError as error:
        raise ConfigError(f"{where}:\n{explain(error)}") from None


def explain(error: ValidationError) -> str:
    """A validation error, one line a mistake: where it is, what is wrong, what was given."""
    lines = []
    mistakes = error.errors(include_url=False)
    for line in mistakes:
        if line["type"] == "too_short" and any(_is_below(other["loc"], line["loc"]) for other in mistakes):
            continue  # items that are wrong themselves are not counted
        place = ".".join(str(part) for part in line["loc"] if not _is_schema_noise(part)) or "(top level)"
        given = "" if line["type"] in ("missing", "plugin") else f" (given: {_short(line['input'])})"
        lines.append(f"  {place}: {line['msg'].removeprefix('Value error, ')}{given}")
    return "\n".join(dict.fromkeys(lines))


def _is_below(place: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _is_schema_noise(part: int | str) -> bool:
    """Unions add the names of their alternatives to a location."""
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "bool", "constrained-int"))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_table(path: Path) -> dict[str, Any]:
    """A TOML, JSON or YAML file as plain data. Raises ConfigError, with the line where there is one."""
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads,
        ".json": _read_json,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
    }
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{path}: an experiment file ends in {', '.join(readers)}")
    try:
        data = readers[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = sorted(str(one) for one in path.parent.glob("*") if one.suffix.lower() in readers)[:8]
        there = f"; in that folder: {', '.join(near)}" if near else ""
        raise ConfigError(f"{path}: there is no such file{there}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected tables such as [sweep] and [model], found {type(data).__name__}")
    return data


def _read_json(text: str) -> Any:
    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise ValueError(f"{key!r} is there twice in one table")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=table)


def _read_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML's own takes the last of two equal keys and says nothing."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            lines: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if (first := lines.setdefault(str(key.value), line)) != line:
                    raise ValueError(f"{key.value!r} is there twice, in line {first} and line {line}")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def experiment_name(path: Path) -> str:
    """What an experiment is called that names itself only by its file: ``my first.toml`` is ``my-first``."""
    return re.sub(r"[^\w.-]+", "-", path.stem).lstrip(".-") or "experiment"


def load_experiment(path: Path, registry: Registry, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, apply ``a.b=value`` overrides, validate.

    Raises ConfigError.
    """
    data = read_table(path)
    for override in overrides:
        override_value(data, override)
    data.setdefault("name", experiment_name(path))
    return make_experiment(data, registry, str(path))


def override_value(data: dict[str, Any], override: str) -> None:
    """Apply ``a.b=value`` in place. The value is read as TOML, or is a string where TOML cannot read it.

    A choice that is a bare string first becomes a table with that name.
    """
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last or not all(parents):
        raise ConfigError(f"--set {override}: write --set table.option=value")
    place: Any = data
    for depth, part in enumerate(parents):
        inner = _item(place, part, override)
        if isinstance(inner, str) and (depth == 0 or (depth == 1 and parents[0] == "loggers")):
            inner = {"name": inner}
        elif inner is None:
            inner = {}
        _put(place, part, inner, override)
        place = inner
    _put(place, last, _toml_value(text.strip()), override)


def _item(place: Any, part: str, override: str) -> Any:
    if isinstance(place, dict):
        return place.get(part)
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return place[int(part)]
    raise ConfigError(f"--set {override}: there is nothing called {part!r} in {_short(place)}")


def _put(place: Any, part: str, value: Any, override: str) -> None:
    if isinstance(place, dict):
        place[part] = value
    elif isinstance(place, list) and part.isdigit() and int(part) < len(place):
        place[int(part)] = value
    else:
        raise ConfigError(f"--set {override}: there is nothing called {part!r} in {_short(place)}")


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text


def replace_choice(data: dict[str, Any], kind: str, name: str) -> list[str]:
    """Choose another plugin of a kind, in place. Returns the options that the old table had."""
    old = data.get(kind)
    data[kind] = {"name": name}
    return sorted(set(old) - {"name"}) if isinstance(old, dict) else []
