"""An experiment: which plugins with which options, and which models to train for how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    Discriminator,
    Field,
    JsonValue,
    PositiveInt,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from flops_fit_core.config.choices import (
    DEFAULTS,
    DatasetChoice,
    DeviceChoice,
    ExecutorChoice,
    FitterChoice,
    FlopCounterChoice,
    LoggerChoice,
    ModelChoice,
    OptimizerChoice,
    PluginConfig,
    RecipeChoice,
    ScheduleChoice,
    StoreChoice,
    TrainerChoice,
)
from flops_fit_core.config.explaining import explain, moved
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.specs import Table
from flops_fit_core.records import Positive

PLANNER = 2
"""The current revision of the planner's defaults: automatic sizes, FLOPs counter, optimizer."""


class Sweep(Table):
    """Which models to train, and for how long."""

    budgets: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Training FLOPs C of each IsoFLOP profile, counted by ``[counter]``."""
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
    init_from_fit: str | None = None
    """A fit's JSON file; its N_opt(C) centres the sizes instead of ``tokens_per_param``."""
    multiple_of: PositiveInt | None = None
    """Sizes are multiples of this; unset, what the family asks for."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Every size of every budget is trained once with each: initial weights and the order of the data."""
    batch_size: PositiveInt | None = None
    """Samples a step for every run; unset, the recipe decides."""
    share_stable_phase: bool = True
    """Whether runs that differ in D only are trained as branches of one trunk, where the schedule has
    branches (``wsd``, ``constant``) and the trainer can do it."""
    reference_tokens: Positive | None = None
    """D at which the recipe is evaluated for runs that share a trunk, whose batch and learning rate cannot
    depend on their own D; unset, 0.3 times ``tokens_per_param`` times N of each size."""
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
    planner: Annotated[int, Field(ge=1, le=PLANNER)] = PLANNER
    """Revision of the planner's defaults: automatic sizes, FLOPs counter and optimizer. Unset, the latest; a study
    that exists keeps the revision it was planned with."""
    sweep: Sweep
    model: ModelChoice
    dataset: DatasetChoice
    optimizer: OptimizerChoice = None  # type: ignore[assignment]
    """Unset: in an experiment file the one that the model family declares; in Python, and for a family that
    declares none, ``sgd``."""
    schedule: ScheduleChoice = None  # type: ignore[assignment]
    recipe: RecipeChoice = DEFAULTS["recipe"]  # type: ignore[assignment]
    flops: FlopCounterChoice = None  # type: ignore[assignment]
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
                raise moved(error, ("sweep", "sizes", index)) from None
        return self


def with_planner(experiment: Experiment, planner: int, registry: Registry) -> Experiment:
    """The experiment with the defaults of another revision of the planner, unless it names a revision itself."""
    if "planner" in experiment.model_fields_set or planner == experiment.planner:
        return experiment
    given = {name: _as_written(getattr(experiment, name)) for name in experiment.model_fields_set}
    return Experiment.model_validate({**given, "planner": planner}, context={"registry": registry})


def _as_written(value: Any) -> Any:
    """A choice whose name is a default without that name, which may be another one for another planner."""
    if isinstance(value, PluginConfig) and value.by_default:
        return value.options.model_dump(exclude_unset=True)
    return value


def make_experiment(data: Mapping[str, Any], registry: Registry, where: str = "experiment") -> Experiment:
    """Validate an experiment given as plain data: what an experiment file holds, or a Python mapping like one.

    Raises ConfigError that lists every mistake with its place (``optimizer.lr``), and what exists.
    """
    try:
        return Experiment.model_validate(dict(data), context={"registry": registry, "from_file": True})
    except ValidationError as error:
        raise ConfigError(f"{where}:\n{explain(error)}") from None
