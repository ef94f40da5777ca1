"""Specs: a plugin describes each component by a name, a typed options model and a ``build`` function.

A spec must be cheap to create. Import torch and other heavy modules inside ``build``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import JsonValue

from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.protocols import (
    CounterInput,
    Dataset,
    Device,
    Executor,
    ExecutorContext,
    Fitter,
    FlopCount,
    Logger,
    LossLaw,
    ParameterGroup,
    RecipeInput,
    ResultStore,
    RunInfo,
    RunReader,
    Schedule,
    Trainer,
    TransformerShape,
    WidthScaling,
)
from flops_fit_core.plugins.protocols.store_checks import FileFinding, StoreRepair
from flops_fit_core.records import Hyperparameters, Job, RunSpec

if TYPE_CHECKING:
    from torch import nn, optim

_UNDECLARED: Any = ""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def check_requirement(requirement: str, owner: str) -> None:
    """Raises ValueError for a requirement that is not in PEP 508 form."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        Requirement(requirement)
    except InvalidRequirement as error:
        raise ValueError(f"{owner} requires {requirement!r}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Base class of all specs.

    Raises ValueError for a name that is not lower case or contains a ``/``, an option called ``name``, a revision
    below 1, or a requirement that is not in PEP 508 form. Raises TypeError if ``build`` is not callable or
    ``options`` is not a subclass of Options.
    """

    kind: ClassVar[str]
    """The table in the experiment file."""

    name: str
    options: type[Options] = Options
    revision: int = 1
    """Increase it when behaviour or a default changes. Runs of the new revision get new ids and are trained
    again."""
    requires: Sequence[str] = ()
    """PEP 508 requirements that must be installed before the spec can be selected, such as ``"ray>=2.9"``."""
    extra: str | None = None
    """The extra of the plugin's distribution that installs them."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.kind} name {self.name!r} must be lower case letters, digits, '.', '_', '-'")
        owner = f"{self.kind} {self.name!r}"
        if not (isinstance(self.options, type) and issubclass(self.options, Options)):
            raise TypeError(f"{owner}: options must be a subclass of Options, not {self.options!r}")
        self.options.model_rebuild()  # now, so that a type that pydantic cannot handle is reported for its plugin
        if not callable(getattr(self, "build", None)):
            raise TypeError(f"{owner}: build must be callable")
        if type(self.revision) is not int or self.revision < 1:
            raise ValueError(f"{owner}: revision must be an integer of at least 1, not {self.revision!r}")
        if "name" in self.options.model_fields:
            raise ValueError(f"{self.options.__name__} may not have an option called 'name'")
        if isinstance(self.requires, str):
            raise TypeError(f"{owner}: requires must be a list, [{self.requires!r}]")
        for requirement in self.requires:
            check_requirement(requirement, owner)


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """A set of sizes of a family, from which the planner chooses."""

    multiple_of: int = 1
    """Values of the size option are multiples of this."""
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    """Options for every size, in addition to the user's: ``{"head_dim": 8}``."""
    scale: Callable[[Any, int], Options] | None = None
    """``(options, target_params) -> options``, for families that more than one integer scales. None: the planner
    searches values of the size option."""
    label: Callable[[Any], str] | None = None
    """``(options)`` -> label of a size in tables, for families where more than the size option varies:
    ``"48x3"``."""

    def __post_init__(self) -> None:
        if type(self.multiple_of) is not int or self.multiple_of < 1:
            raise ValueError(f"Ladder: multiple_of must be an integer of at least 1, not {self.multiple_of!r}")


def head_ladders(options: Options, option: str = "head_dim", *, smallest: int = 4) -> list[Ladder]:
    """Ladders with sizes that are multiples of the channels per attention head, so that all heads have equal size.

    The first ladder has the value of ``option``. If the user has not set it, further ladders have a half of it, a
    quarter, and so on down to ``smallest``.
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
    """Sizes that the planner chooses are multiples of this."""
    scale: Callable[[Any, int], Options] | None = None
    """``(options, target_params) -> options``, for families that more than one integer scales. None: the planner
    searches values of ``size``."""
    ladders: Callable[[Any], Iterable[Ladder]] | None = None
    """``(options)`` -> ladders from which sizes are chosen, the preferred ladder first. The planner takes the
    first ladder with sizes close enough for ``sweep.size_ratio``, otherwise the finest. None: a single ladder with
    ``multiple_of`` and ``scale``."""
    heads: Callable[[Any], tuple[int, int] | None] | None = None
    """``(options)`` -> number of attention heads and channels per head, which the plan shows; None for a model
    without heads."""
    width: Callable[[Any], int] | None = None
    """``(options)`` -> the width by which learning rates are scaled. None for a family without a width."""
    flops_per_token: Callable[[Any, Any], float | None] | None = None
    """``(options, task)`` -> training FLOPs (3 x forward) per token, counted by the family; None if it cannot
    count them for these options."""
    shape: Callable[[Any, Any], TransformerShape | None] | None = None
    """``(options, task)`` -> the dimensions from which formulas count a transformer's FLOPs; None for other
    models."""
    parameter_groups: Callable[[nn.Module], Iterable[ParameterGroup]] | None = None
    """``(module)`` -> every parameter in exactly one group."""
    width_scaled_options: Callable[[Any], Mapping[str, Any]] | None = None
    """``(options)`` -> values of options for runs that scale learning rates by the width (runs with a
    ``base_width``), such as a different initialization. The planner sets those that the user left unset."""
    width_transfer: Callable[[Any], str | None] | None = None
    """``(options)`` -> the reason why transfer of the learning rate between widths is not verified with these
    options, for a note in the plan; None if it is verified."""
    optimizer: str | None = None
    """Qualified name of the default optimizer of this family in an experiment file, such as ``"optim/adamw"``.
    None: ``optim/sgd``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer is not None and not isinstance(self.optimizer, str):
            raise TypeError(f"model {self.name!r}: optimizer must be a name, not {self.optimizer!r}")
        field = self.options.model_fields.get(self.size)
        if field is None or field.is_required():
            raise ValueError(
                f"model {self.name!r}: size {self.size!r} must be the name of an option that has a default"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """``build(options, seed)`` returns a ``Dataset``. The seed affects only the order of training data."""

    kind: ClassVar[str] = "dataset"

    build: Callable[[Any, int], Dataset]
    trainer: str | None = None
    """The default trainer of experiments on this dataset. None: that of all experiments."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(Spec):
    """``build(options, model, run)`` returns a ``torch.optim.Optimizer``. The ``lr`` of its groups is the peak.

    An optimizer that evaluates other weights than it trains has two modes: ``train()`` before steps, ``eval()``
    while a held-out loss is measured. States are saved in train mode.
    """

    kind: ClassVar[str] = "optimizer"

    build: Callable[[Any, nn.Module, RunInfo], optim.Optimizer]
    width_scaling: WidthScaling = _UNDECLARED
    """Required. How the learning rates depend on the model's width:

    * ``"adam"``: like Adam's. The size of a step does not depend on the gradient's scale, so a matrix with
      ``width`` input channels needs ``lr * base_width / width``. ``build`` calls ``run.param_groups``.
    * ``"none"``: the same learning rate for all parameters at every width, as for plain SGD. Recipes for AdamW do
      not apply. ``build`` calls ``run.param_groups``.
    * ``"custom"``: ``build`` sets the learning rate of each of ``run.groups(model)`` by another rule, as for Muon.
      Recipes return values for AdamW.
    """
    lr_relative_to_adamw: float = 1.0
    """A good learning rate for this optimizer, divided by a good learning rate for AdamW. Recipes multiply their
    learning rate for AdamW by it and divide the weight decay by it, so that the product stays the same. Values
    that a user sets are not changed. Unused with ``width_scaling="none"``."""
    schedule: str | None = None
    """The default schedule of experiments with this optimizer. None: that of all experiments."""

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
    """``build(options, run)`` returns the multiplier of the peak learning rate as a function of the step."""

    kind: ClassVar[str] = "schedule"

    build: Callable[[Any, RunInfo], Schedule]
    branch: Callable[[Any, RunInfo], int] | None = None
    """``(options, run)`` -> number of first steps that have the same multipliers in every longer run with the same
    options. Runs that differ only in D train these steps once. None: the multipliers of all steps depend on D."""


@dataclass(frozen=True, kw_only=True)
class RecipeSpec(Spec):
    """``build(options, run)`` returns hyperparameters for those that the user left unset. ``run``: a
    RecipeInput."""

    kind: ClassVar[str] = "recipe"

    build: Callable[[Any, RecipeInput], Hyperparameters]
    lr_option: str | None = None
    """The option that is the learning rate, or a factor of it at every size. ``flops-fit tune`` writes it.
    None: ``flops-fit tune`` writes ``optimizer.lr``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_option is not None and self.lr_option not in self.options.model_fields:
            raise ValueError(f"recipe {self.name!r}: lr_option {self.lr_option!r} is not one of its options")


@dataclass(frozen=True, kw_only=True)
class FlopCounterSpec(Spec):
    """``build(options, model)`` returns training FLOPs per token and N, with their conventions. ``model``: a
    CounterInput."""

    kind: ClassVar[str] = "counter"

    build: Callable[[Any, CounterInput], FlopCount]


@dataclass(frozen=True, kw_only=True)
class StoreSpec(Spec):
    """``build(options, folder)`` opens the ``ResultStore`` of a study, and creates it if it does not exist."""

    kind: ClassVar[str] = "store"

    build: Callable[[Any, Path], ResultStore]
    file: str | None = None
    """Name of the file or folder in the study's folder that holds the results, such as ``results.sqlite``. A study
    that changes to another store looks for results there. None: the results are not in the study's folder."""
    check: Callable[[Any, Path], Sequence[FileFinding]] | None = None
    """``(options, folder)`` -> the state of each file of the store; empty if it has none. Called by ``flops-fit
    store check``. Changes nothing, and reports damage instead of raising an exception. None: the store cannot
    check."""
    repair: Callable[[Any, Path], StoreRepair] | None = None
    """``(options, folder)`` -> outcome. Called by ``flops-fit store repair`` if ``check`` finds damage and no
    driver trains the study. Moves damaged files aside and writes a new store with every intact result. Deletes
    nothing, and changes nothing in an intact store. A call after an interruption completes the repair. Raises
    StoreError. None: the store cannot repair."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repair is not None and self.check is None:
            raise TypeError(f"store {self.name!r}: repair needs check, which finds the damage")


@dataclass(frozen=True, kw_only=True)
class DeviceSpec(Spec):
    """``build(options)`` returns the ``Device`` of this process, chosen when a run starts."""

    kind: ClassVar[str] = "device"

    build: Callable[[Any], Device]
    slots: Callable[[Any], Sequence[Mapping[str, str]]]
    """``(options)`` -> environment variables of each slot of this machine. A slot can train one run: a core or a
    GPU. Must not initialize CUDA in this process."""
    devices_per_run: Callable[[Any, int], int] = lambda options, training_bytes: 1
    """``(options, training_bytes)`` -> number of devices that train one run. ``training_bytes``: size of the run's
    weights, gradients and optimizer state."""
    peaks: Callable[[], Mapping[str, float]] = dict
    """Names of devices -> dense peak FLOP/s in bfloat16, for ``flops-fit budget --device h100``. A name is lower
    case. Several names may mean one device."""


@dataclass(frozen=True, kw_only=True)
class TrainerSpec(Spec):
    """``build(options)`` returns a ``Trainer``."""

    kind: ClassVar[str] = "trainer"

    build: Callable[[Any], Trainer]
    can: frozenset[str] = frozenset()
    """Kinds of jobs that the trainer supports: any of ``branch``, ``checkpoint``, ``vmap_runs``, ``distribute``,
    ``launch``. With ``vmap_runs``, the option of that name is the maximum number of trajectories of one shape per
    job. A job on several devices has one process per device with ``distribute``. With ``launch`` it has a single
    process, which sees all of them."""
    check: Callable[[Any, RunSpec, Callable[[str], Mapping[str, Any]]], object] | None = None
    """``(options, run, options_of)``. Called for a run of each size and budget while the sweep is planned. Raises
    ConfigError if the trainer cannot train this run. ``options_of(kind)`` returns the options of the run's plugin
    of a kind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := self.can - {"branch", "checkpoint", "vmap_runs", "distribute", "launch"}:
            raise ValueError(f"trainer {self.name!r}: unknown values in can: {', '.join(sorted(unknown))}")


@dataclass(frozen=True, kw_only=True)
class ExecutorSpec(Spec):
    """``build(options, context)`` returns an ``Executor``."""

    kind: ClassVar[str] = "executor"

    build: Callable[[Any, ExecutorContext], Executor]
    places: Callable[[Any, Sequence[Mapping[str, str]]], int | None] = lambda options, slots: None
    """``(options, slots of this machine)`` -> number of jobs that run at the same time, to estimate the duration
    of a sweep. None if it is unknown before the sweep starts."""
    check: Callable[[Any], Sequence[str]] = lambda options: ()
    """``(options)`` -> lines that describe the resources of the executor, for ``flops-fit doctor``. Starts
    nothing. Raises UserError if the executor cannot be used."""
    describe_jobs: Callable[[Any, Sequence[Job], Path], str] | None = None
    """``(options, jobs, study's folder)`` -> the scripts that it would submit and the resources of a job, for
    ``flops-fit plan --show-script``. Submits and writes nothing. None if the executor submits no scripts."""


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


@dataclass(frozen=True, kw_only=True)
class LawSpec(Spec):
    """``build()`` returns a ``LossLaw``. A law has no options."""

    kind: ClassVar[str] = "law"

    build: Callable[[], LossLaw]


@dataclass(frozen=True, kw_only=True)
class ReaderSpec(Spec):
    """``build(options)`` returns a ``RunReader``, which reads the logs of runs of other software."""

    kind: ClassVar[str] = "reader"

    build: Callable[[Any], RunReader]
    recognises: Callable[[Path], bool]
    """``(path)`` -> whether a folder or file holds logs of this kind. Called for every source of a fit, so it must
    be fast: look at names and at the start of a file, and import no optional package."""
