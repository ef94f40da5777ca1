"""What a plugin hands to the engine: a name, a typed options model, and a way to build the thing.

A spec is cheap to make and imports nothing heavy; torch and friends are imported inside ``build``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticUndefined, to_jsonable_python

from flops_fit_core.plugins.protocols import (
    CounterInput,
    Dataset,
    Device,
    Executor,
    ExecutorContext,
    Fitter,
    FlopCount,
    Logger,
    ParameterGroup,
    RecipeInput,
    ResultStore,
    RunInfo,
    Schedule,
    Trainer,
    TransformerShape,
    WidthScaling,
)
from flops_fit_core.records import Hyperparameters, RunSpec

if TYPE_CHECKING:
    from torch import nn, optim

_UNDECLARED: Any = ""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class Table(BaseModel):
    """Base of every table a user writes. Unknown keys are errors that name the nearest known one."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        populate_by_name=True,
        defer_build=True,  # importing the core is to take a fraction of a second
    )

    @model_validator(mode="wrap")
    @classmethod
    def _explain_unknown_keys(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        misplaced = _misplaced_booleans(cls, value)
        try:
            table = handler(value)
        except ValidationError as error:
            known = [field.alias or name for name, field in cls.model_fields.items()]
            raise _with_known_keys(error, known, misplaced) from None
        if misplaced:
            raise ValidationError.from_exception_data(cls.__name__, misplaced)
        return table


def _misplaced_booleans(table: type[BaseModel], value: Any) -> list[InitErrorDetails]:
    """Errors for ``true`` and ``false`` where a number is wanted, which pydantic takes for 1 and 0."""
    given = value if isinstance(value, Mapping) else {}
    text = "give a number, not true or false"
    return [
        {
            "type": PydanticCustomError("not_a_number", "{text}", {"text": text}),
            "loc": (name,),
            "input": given[name],
        }
        for name, field in table.model_fields.items()
        if name in given and _is_misplaced(field.annotation, given[name])
    ]


def _is_misplaced(annotation: Any, value: Any) -> bool:
    kinds = _alternatives(annotation)
    if isinstance(value, bool):
        is_number = any(isinstance(kind, type) and issubclass(kind, (int, float)) for kind in kinds)
        takes_bool = any(kind in (bool, Any) or _is_literal(kind, value) for kind in kinds)
        return is_number and not takes_bool
    if isinstance(value, list | tuple):
        items = [item for kind in kinds if get_origin(kind) in (list, tuple, set) for item in get_args(kind)]
        inner = Union[tuple(item for item in items if item is not Ellipsis)] if items else Any  # noqa: UP007
        return any(_is_misplaced(inner, item) for item in value)
    return False


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without ``Annotated``."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _alternatives(member)]
    return [annotation]


def _is_literal(kind: Any, value: bool) -> bool:
    return get_origin(kind) is Literal and any(literal is value for literal in get_args(kind))


def _with_known_keys(
    error: ValidationError, known: list[str], misplaced: list[InitErrorDetails]
) -> ValidationError:
    lines: list[InitErrorDetails] = list(misplaced)
    for line in error.errors():
        kind: str | PydanticCustomError = line["type"]
        if kind == "extra_forbidden" and len(line["loc"]) == 1:
            close = difflib.get_close_matches(str(line["loc"][0]), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            there = ", ".join(known) or "none"
            kind = PydanticCustomError("unknown_key", "{text}", {"text": f"unknown; {hint}there is: {there}"})
        else:
            text = "Input should be a list" if line["type"] == "tuple_type" else line["msg"]
            kind = PydanticCustomError(line["type"], "{text}", {"text": text})
        lines.append({"type": kind, "loc": line["loc"], "input": line["input"]})
    return ValidationError.from_exception_data(error.title, lines)


class Options(Table):
    """Base of every plugin's options. Unknown keys are errors; validated values never change."""


@dataclass(frozen=True)
class Runtime:
    """Marks an option that changes how a run is done but not its result, so that it is no part of a run's id.

    ``threads: Annotated[int, Runtime()] = 1``
    """


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


LocalPath = Annotated[str, AfterValidator(_absolute)]
"""Type of an option that names a file or a folder: relative to the working directory when it is read, absolute in
records, so that workers find it from wherever they are."""

EvalSetName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Type of a further held-out set's name."""


def identity_options(options: Options) -> dict[str, JsonValue]:
    """The options that identify a run: those that differ from their default and are not ``Runtime()``."""
    return _changed(options, lambda name: not _is_runtime(options, name))


def runtime_options(options: Options) -> dict[str, JsonValue]:
    """The ``Runtime()`` options that differ from their default."""
    return _changed(options, lambda name: _is_runtime(options, name))


def _changed(options: Options, wanted: Callable[[str], bool]) -> dict[str, JsonValue]:
    dumped = options.model_dump(mode="json", exclude_defaults=True)
    return {name: value for name, value in dumped.items() if wanted(name) and value != _default(options, name)}


def _default(options: Options, name: str) -> Any:
    """The default in JSON: an author may write ``[0.9, 0.95]`` where validation makes a tuple of it."""
    field = type(options).model_fields[name]
    return (
        PydanticUndefined
        if field.is_required()
        else to_jsonable_python(field.get_default(call_default_factory=True))
    )


def _is_runtime(options: Options, name: str) -> bool:
    marks = type(options).model_fields[name].metadata
    return any(isinstance(mark, Runtime) or mark is Runtime for mark in marks)


def check_requirement(requirement: str, what: str) -> None:
    """Raises ValueError for a requirement that is not in PEP 508 form."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        Requirement(requirement)
    except InvalidRequirement as error:
        raise ValueError(f"{what} requires {requirement!r}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Base of all specs.

    Raises ValueError for a name that is not lower case or has a ``/``, an option called ``name``, a revision
    below 1, or a requirement that is not in PEP 508 form; TypeError for a ``build`` that cannot be called or
    ``options`` that are no Options.
    """

    kind: ClassVar[str]
    """The table in the experiment file."""

    name: str
    options: type[Options] = Options
    revision: int = 1
    """Raise it when behaviour or a default changes: runs made before then count as other runs."""
    requires: Sequence[str] = ()
    """PEP 508 requirements that must be installed before this can be chosen, such as ``"ray>=2.9"``."""
    extra: str | None = None
    """The extra of the plugin's distribution that installs them."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.kind} name {self.name!r} must be lower case letters, digits, '.', '_', '-'")
        what = f"{self.kind} {self.name!r}"
        if not (isinstance(self.options, type) and issubclass(self.options, Options)):
            raise TypeError(f"{what}: options must be a subclass of Options, not {self.options!r}")
        self.options.model_rebuild()  # now, so that types that pydantic cannot handle are their plugin's problem
        if not callable(getattr(self, "build", None)):
            raise TypeError(f"{what}: build must be callable")
        if type(self.revision) is not int or self.revision < 1:
            raise ValueError(f"{what}: revision must be an integer from 1 on, not {self.revision!r}")
        if "name" in self.options.model_fields:
            raise ValueError(f"{self.options.__name__} may not have an option called 'name'")
        if isinstance(self.requires, str):
            raise TypeError(f"{what}: requires must be a list, [{self.requires!r}]")
        for requirement in self.requires:
            check_requirement(requirement, what)


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """One way to choose the sizes of a family automatically."""

    multiple_of: int = 1
    """Values of the size option are multiples of this."""
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    """Options that hold at every size, beside the user's: ``{"head_dim": 8}``."""
    scale: Callable[[Any, int], Options] | None = None
    """``(options, target_params) -> options`` where one integer is not enough; None: the planner searches values
    of the size option."""
    label: Callable[[Any], str] | None = None
    """``(options)`` -> a size as tables show it, where more than the size option varies: ``"48x3"``."""

    def __post_init__(self) -> None:
        if type(self.multiple_of) is not int or self.multiple_of < 1:
            raise ValueError(f"Ladder: multiple_of must be an integer from 1 on, not {self.multiple_of!r}")


def head_ladders(options: Options, option: str = "head_dim", *, smallest: int = 4) -> list[Ladder]:
    """Ladders whose sizes are multiples of the channels of an attention head, so that all heads are of one size.

    The first has ``option`` as it is. If the user left it unset, the next ones have a half of it, a quarter, and
    so on down to ``smallest``.
    """
    head_dim: int = getattr(options, option)
    ladders = [Ladder(multiple_of=head_dim)]
    while option not in options.model_fields_set and head_dim % 2 == 0 and head_dim // 2 >= smallest:
        head_dim //= 2
        ladders.append(Ladder(multiple_of=head_dim, options={option: head_dim}))
    return ladders


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """A model family: ``build(options, task)`` returns the ``nn.Module``.

    It must build on the meta device (create tensors without a ``device=`` argument and read no values).
    """

    kind: ClassVar[str] = "model"

    build: Callable[[Any, Any], nn.Module]
    size: str
    """The integer option that scales."""
    multiple_of: int = 1
    """Sizes found by the planner are multiples of this."""
    scale: Callable[[Any, int], Options] | None = None
    """``(options, target_params) -> options`` where one integer is not enough; otherwise the planner
    searches values of ``size``."""
    ladders: Callable[[Any], Iterable[Ladder]] | None = None
    """``(options)`` -> ways to choose sizes automatically, the preferred one first. The planner takes the first
    whose sizes are close enough for ``sweep.size_ratio``, otherwise the finest. None: one, of ``multiple_of`` and
    ``scale``."""
    heads: Callable[[Any], tuple[int, int] | None] | None = None
    """``(options)`` -> number of attention heads and channels of each, which the plan shows; None for a model
    without heads."""
    width: Callable[[Any], int] | None = None
    """Width by which learning rates are scaled; None for a family that has none."""
    flops_per_token: Callable[[Any, Any], float | None] | None = None
    """``(options, task)`` -> the family's own count of training FLOPs (3 x forward) a token; None where it has
    none for these options."""
    shape: Callable[[Any, Any], TransformerShape | None] | None = None
    """``(options, task)`` -> what a formula needs to count a transformer's FLOPs; None for other models."""
    parameter_groups: Callable[[nn.Module], Iterable[ParameterGroup]] | None = None
    """``(module)`` -> every parameter in exactly one group."""
    width_scaled_options: Callable[[Any], Mapping[str, Any]] | None = None
    """``(options)`` -> values of options for a run whose learning rates are scaled by the width (it has a
    ``base_width``), such as another initialization. The planner fills in those that the user left unset."""
    width_transfer: Callable[[Any], str | None] | None = None
    """``(options)`` -> why one learning rate is not verified to serve every width with these options, for a note
    in the plan; None where it is verified."""
    optimizer: str | None = None
    """Qualified name of the optimizer that an experiment file uses for this family unless it names one, such as
    ``"optim/adamw"``. None: ``optim/sgd``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer is not None and not isinstance(self.optimizer, str):
            raise TypeError(f"model {self.name!r}: optimizer must be a name, not {self.optimizer!r}")
        field = self.options.model_fields.get(self.size)
        if field is None or field.is_required():
            raise ValueError(
                f"model {self.name!r} scales by {self.size!r}, so that must be an option with a default"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """``build(options, seed)`` returns a ``Dataset``; the seed orders training data only."""

    kind: ClassVar[str] = "dataset"

    build: Callable[[Any, int], Dataset]
    trainer: str | None = None
    """The trainer that an experiment on this data uses unless it names one."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(Spec):
    """``build(options, model, run)`` returns a ``torch.optim.Optimizer`` whose groups' ``lr`` are the peaks.

    One whose weights to train are not the weights to use has two modes: ``train()`` before steps, ``eval()`` while
    a held-out loss is measured. States are saved in train mode.
    """

    kind: ClassVar[str] = "optimizer"

    build: Callable[[Any, nn.Module, RunInfo], optim.Optimizer]
    width_scaling: WidthScaling = _UNDECLARED
    """Required. How the learning rates depend on the model's width:

    * ``"adam"``: as Adam's. The size of a step does not depend on the gradient's scale, so a matrix fed by
      ``width`` channels needs ``lr * base_width / width``. ``build`` calls ``run.param_groups``.
    * ``"none"``: one learning rate for all parameters at every width, as for plain SGD. Recipes for AdamW do not
      apply. ``build`` calls ``run.param_groups``.
    * ``"custom"``: ``build`` sets the learning rate of each of ``run.groups(model)`` by another rule, as for Muon.
      Recipes give the optimizer values for AdamW.
    """
    lr_relative_to_adamw: float = 1.0
    """Learning rate that serves the optimizer, divided by the one that serves AdamW. Recipes multiply their
    learning rate for AdamW by it and divide the weight decay by it, so that the product stays. Values that a user
    sets are used as they are. Unused with ``width_scaling="none"``."""
    schedule: str | None = None
    """The schedule that an experiment with this optimizer uses unless it names one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width_scaling not in get_args(WidthScaling):
            problem = "is missing" if self.width_scaling == _UNDECLARED else f"cannot be {self.width_scaling!r}"
            raise ValueError(
                f"optimizer {self.name!r}: width_scaling {problem}: write "
                f'width_scaling="adam" (matrices get lr * base_width / width, as with Adam), '
                f'"none" (one learning rate at every width, as with SGD) or '
                f'"custom" (build scales the learning rates itself)'
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec(Spec):
    """``build(options, run)`` returns the learning rate's multiplier as a function of the step."""

    kind: ClassVar[str] = "schedule"

    build: Callable[[Any, RunInfo], Schedule]
    branch: Callable[[Any, RunInfo], int] | None = None
    """``(options, run)`` -> number of steps whose multipliers are those of every longer run with the same
    options. Runs that are equal but for D then train these steps once. None: D shapes the whole schedule."""


@dataclass(frozen=True, kw_only=True)
class RecipeSpec(Spec):
    """``build(options, about)`` returns the hyperparameters that the user left unset, for one run."""

    kind: ClassVar[str] = "recipe"

    build: Callable[[Any, RecipeInput], Hyperparameters]
    lr_option: str | None = None
    """The option that is the learning rate, or that multiplies it at every size: what ``flops-fit tune`` writes.
    None: it writes ``optimizer.lr``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_option is not None and self.lr_option not in self.options.model_fields:
            raise ValueError(f"recipe {self.name!r}: lr_option {self.lr_option!r} is none of its options")


@dataclass(frozen=True, kw_only=True)
class FlopCounterSpec(Spec):
    """``build(options, measured)`` returns training FLOPs a token and N, with their conventions."""

    kind: ClassVar[str] = "counter"

    build: Callable[[Any, CounterInput], FlopCount]


@dataclass(frozen=True, kw_only=True)
class StoreSpec(Spec):
    """``build(options, folder)`` opens the ``ResultStore`` of a study, creating it where there is none."""

    kind: ClassVar[str] = "store"

    build: Callable[[Any, Path], ResultStore]
    file: str | None = None
    """Name of the file or folder in the study's folder that holds the results, such as ``results.sqlite``: a study
    that changes to another store finds them by it. None: they are elsewhere."""


@dataclass(frozen=True, kw_only=True)
class DeviceSpec(Spec):
    """``build(options)`` returns the ``Device`` of this process, chosen when a run starts."""

    kind: ClassVar[str] = "device"

    build: Callable[[Any], Device]
    slots: Callable[[Any], Sequence[Mapping[str, str]]]
    """``(options)`` -> environment variables of each place on this machine where one run can be computed:
    one a core, or one a GPU. Must not start CUDA in this process."""
    devices_per_run: Callable[[Any, int], int] = lambda options, training_bytes: 1
    """``(options, training_bytes)`` -> devices that train one run together. ``training_bytes``: of the run's
    weights, their gradients and the optimizer's numbers."""


@dataclass(frozen=True, kw_only=True)
class TrainerSpec(Spec):
    """``build(options)`` returns a ``Trainer``."""

    kind: ClassVar[str] = "trainer"

    build: Callable[[Any], Trainer]
    can: frozenset[str] = frozenset()
    """Of ``branch``, ``checkpoint``, ``vmap_runs``, ``distribute``, ``launch``: what jobs the planner may give it. With
    ``vmap_runs``, the option ``vmap_runs`` is the most trajectories of one shape in a job. A job on several devices has one
    process for each with ``distribute``; with ``launch`` it has one that sees all of them."""
    check: Callable[[Any, RunSpec, Callable[[str], Mapping[str, Any]]], object] | None = None
    """``(options, run, options_of)``, for a run of each size and budget while the sweep is planned. Raises
    ConfigError where it cannot train this run; ``options_of(kind)`` gives the options of the run's plugin of a
    kind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := self.can - {"branch", "checkpoint", "vmap_runs", "distribute", "launch"}:
            raise ValueError(f"trainer {self.name!r} claims unknown abilities: {', '.join(sorted(unknown))}")


@dataclass(frozen=True, kw_only=True)
class ExecutorSpec(Spec):
    """``build(options, context)`` returns an ``Executor``."""

    kind: ClassVar[str] = "executor"

    build: Callable[[Any, ExecutorContext], Executor]
    places: Callable[[Any, Sequence[Mapping[str, str]]], int | None] = lambda options, slots: None
    """``(options, slots of this machine)`` -> jobs at a time, to estimate the time that a sweep takes; None where
    that is not known before it has begun."""
    check: Callable[[Any], Sequence[str]] = lambda options: ()
    """``(options)`` -> what there is for it here, in words, for ``flops-fit doctor``. Starts nothing. Raises
    UserError where it cannot be used."""


@dataclass(frozen=True, kw_only=True)
class LoggerSpec(Spec):
    """``build(options, folder)`` returns a ``Logger``."""

    kind: ClassVar[str] = "logger"

    build: Callable[[Any, Path], Logger]


@dataclass(frozen=True, kw_only=True)
class FitterSpec(Spec):
    """``build(options)`` returns a ``Fitter``."""

    kind: ClassVar[str] = "fitter"

    build: Callable[[Any], Fitter]
