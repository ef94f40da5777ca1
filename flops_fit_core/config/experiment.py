"""``Experiment``: plugins with their options, and the sweep of sizes and budgets."""

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
    RecipeChoice,
    ScheduleChoice,
    StoreChoice,
    TrainerChoice,
)
from flops_fit_core.config.explaining import explain, moved
from flops_fit_core.config.secrets import refuse_secrets
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.options import Table
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Positive


class Sweep(Table):
    """Sizes, budgets and seeds of the runs."""

    budgets: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Training FLOPs C of each IsoFLOP profile, counted by ``[counter]``."""
    sizes: Annotated[
        Annotated[PositiveInt, Tag("[count]")]
        | Annotated[tuple[dict[str, JsonValue], ...], Field(min_length=1), Tag("[tables]")],
        Discriminator(lambda value: "[tables]" if isinstance(value, list | tuple) else "[count]"),
    ] = 6
    """How many sizes each budget gets from a common log-spaced ladder; or a list of tables of model
    options, each merged over ``[model]``, all of which every budget gets."""
    size_ratio: Annotated[float, Field(gt=1)] = 1.6
    """Ratio of N between neighbouring sizes of the ladder."""
    tokens_per_param: Positive = 20.0
    """A guess of D / N at the optimum, which centres each budget's sizes."""
    init_from_fit: str | None = None
    """A fit's JSON file; its N_opt(C) centres the sizes instead of ``tokens_per_param``."""
    multiple_of: PositiveInt | None = None
    """Sizes are multiples of this. Unset, the family decides."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Each (budget, size) cell is trained once per seed. A seed sets the initial weights and the data order."""
    batch_size: PositiveInt | None = None
    """Samples per step of every run. Unset, the recipe decides."""
    share_stable_phase: bool = True
    """Whether runs that differ only in D share the stable phase of their training. The schedule must have branches
    (``wsd``, ``constant``), and the trainer must support them."""
    reference_tokens: Positive | None = None
    """D at which the recipe is evaluated for runs with a shared stable phase: their batch and learning rate cannot
    depend on D. Unset, 0.3 times ``tokens_per_param`` times N of each size."""
    min_steps: PositiveInt = 100
    """Sizes that a budget would train for fewer steps than this are skipped."""
    allow_repeat: bool = False
    """Whether a run may see the training data more than once."""

    @field_validator("budgets")
    @classmethod
    def _ascending(cls, budgets: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(budgets)))

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is repeated: its runs would be the same")
        return seeds


class Experiment(Table):
    """A complete description of a scaling-law experiment."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = "experiment"
    """The experiment's name. The study's folder is ``runs/NAME`` by default."""
    sweep: Sweep
    model: ModelChoice
    dataset: DatasetChoice
    optimizer: OptimizerChoice = None  # type: ignore[assignment]
    """Unset in an experiment file, the optimizer that the model family declares, or ``sgd`` if it declares none.
    Unset in Python, ``sgd``."""
    schedule: ScheduleChoice = None  # type: ignore[assignment]
    recipe: RecipeChoice = DEFAULTS["recipe"]  # type: ignore[assignment]
    counter: FlopCounterChoice = None  # type: ignore[assignment]
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


def make_experiment(data: Mapping[str, Any], registry: Registry, origin: str = "experiment") -> Experiment:
    """Validate an experiment from plain data: the content of an experiment file, or an equal Python mapping.

    Raises ConfigError, which lists every mistake with its key (``optimizer.lr``) and the valid names, or every
    secret with its key.
    """
    refuse_secrets(data, origin)
    try:
        return Experiment.model_validate(dict(data), context={"registry": registry, "from_file": True})
    except ValidationError as error:
        raise ConfigError(f"{origin}:\n{explain(error)}") from None
