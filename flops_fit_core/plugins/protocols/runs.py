"""One run: what recipes, optimizers, schedules and trainers are given, and what they give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from flops_fit_core.errors import PluginError
from flops_fit_core.plugins.protocols.data import Batch, Dataset, Task
from flops_fit_core.plugins.protocols.models import ParameterGroup
from flops_fit_core.records import Job, ParameterCounts, Progress, RunResult, RunSpec, Status

if TYPE_CHECKING:
    from torch import nn, optim


WidthScaling = Literal["adam", "none", "custom"]
"""How an optimizer's learning rates depend on the width; see ``OptimizerSpec.width_scaling``."""


@dataclass(frozen=True)
class RecipeInput:
    """What a recipe may look at."""

    params: int
    """N by the plan's FLOPs counter."""
    tokens: int
    """D before it is rounded to whole steps."""
    width: int | None
    """Of the model, where its family has one."""
    task: Task
    width_scaling: WidthScaling
    """The optimizer's declaration. Values for AdamW hold unless it is ``"none"``."""
    lr_relative_to_adamw: float = field(kw_only=True, default=1.0)
    """Learning rate that serves the optimizer, divided by the one that serves AdamW."""
    flops: float = field(kw_only=True)
    """C: training FLOPs of the run by the plan's counter, at ``tokens``."""
    parameters: ParameterCounts = field(kw_only=True)
    """The model's parameters apart, for a law whose N is another than ``params``."""
    lr: float | None = field(kw_only=True, default=None)
    """Peak learning rate where the user set it."""
    batch_size: int | None = field(kw_only=True, default=None)
    """Samples a step where the user set it."""
    trunk: bool = field(kw_only=True, default=False)
    """Whether runs of several D get what is given, much shorter and longer ones than ``tokens``."""


@dataclass(frozen=True)
class RunInfo:
    """What an optimizer and a schedule see of their run."""

    steps: int
    tokens: int
    tokens_per_step: int
    base_width: int | None
    groups: Callable[[nn.Module], Sequence[ParameterGroup]] = field(repr=False)
    """The family's parameter groups; one group of everything where it names none."""
    width_scaling: WidthScaling = field(kw_only=True)
    """Declared by the spec of the run's optimizer."""

    def param_groups(self, model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """The model's parameters as torch's optimizers take them, in the order of the family's groups.

        Each group has ``params``, ``lr`` and ``weight_decay`` (0 for parameters that must not decay). With
        ``width_scaling="adam"``, a group's learning rate is ``lr * lr_scale(group)`` and its decay is divided by
        the same factor. With ``"none"``, every group has ``lr`` and ``weight_decay`` as they are.

        Raises PluginError for an optimizer with ``width_scaling="custom"``.
        """
        if self.width_scaling == "custom":
            raise PluginError(
                'run.param_groups sets the learning rates of optimizers with width_scaling="adam" or "none", and '
                'this optimizer declares "custom": use run.groups(model) and run.lr_scale(group)'
            )
        scaled = self.width_scaling == "adam"
        return [
            group.torch_group(lr, weight_decay, lr_scale=self.lr_scale(group) if scaled else 1.0)
            for group in self.groups(model)
        ]

    def lr_scale(self, group: ParameterGroup) -> float:
        """Multiplier of Adam's learning rate for ``group``: ``base_width / group.width``.

        It is 1 for a group without a width, and in a run without a base width.
        """
        return self.base_width / group.width if self.base_width and group.width else 1.0


Schedule = Callable[[int], float]
"""Multiplier of the peak learning rate at a step, counted from 0 to ``run.steps - 1``: a function."""


class Device:
    """Base class of devices, on which runs are computed.

    Set ``torch_device`` and ``name`` in the class or in ``__init__``. The methods describe a device without a
    queue and without memory of its own, such as a CPU.
    """

    torch_device: str
    """Argument of ``torch.device``: ``"cpu"``, ``"cuda:0"``."""
    name: str
    """For people: ``"NVIDIA H100 80GB HBM3"``."""
    precision: str = "float32"
    """Precision of ``auto``: ``"float32"``, or ``"bfloat16"`` if autocast is faster."""

    def synchronize(self) -> None:
        """Wait until all submitted work is done."""

    def peak_memory(self) -> int | None:
        """Bytes at the peak since :meth:`release`; None if unknown."""
        return None

    def release(self) -> None:
        """Give cached memory back and start a new count of the peak."""

    def peak_flops(self, precision: str) -> float | None:
        """Dense peak in FLOP/s at ``"float32"`` or ``"bfloat16"``, by its maker; None if unknown."""
        return None


@dataclass(frozen=True)
class BuiltRun:
    """Everything that one run is made of, built on its device from its seed."""

    model: nn.Module
    dataset: Dataset
    optimizer: optim.Optimizer
    schedule: Schedule


class DistributedContext(Protocol):
    """The processes that train one run, each on its own device, as seen by one of them.

    All processes take the same steps and call these methods in the same order. Decisions that depend on a clock, a
    signal or a file must go through :meth:`broadcast`.
    """

    rank: int
    """Number of this process, counted from 0. The first process writes checkpoints and yields results. Results of
    the others are dropped."""
    size: int
    """Number of processes; 1 for a process that trains alone."""

    def broadcast(self, decision: bool) -> bool:
        """The decision of the first process."""

    def all_reduce_sum(self, value: float) -> float:
        """The sum over all processes, in float64."""

    def barrier(self) -> None:
        """Wait until every process has called this."""

    def local_batch(self, batch: Batch, samples: int) -> Batch:
        """The samples of a batch of ``samples`` for this process: contiguous, in order, as even as possible."""

    def local_samples(self, samples: int) -> int:
        """Number of samples that :meth:`local_batch` returns."""

    def wrap_model(self, model: nn.Module) -> nn.Module:
        """The model to call in training, so that backward averages gradients over the processes."""

    def seed(self, run_seed: int, step: int) -> None:
        """Seed random generators differently in every process. Those of the first process keep their state, which
        equals that of a process that trains alone."""


class TrainContext(Protocol):
    """What a worker gives to a trainer: its surroundings, and its run's plugins already chosen."""

    @property
    def device(self) -> Device: ...

    @property
    def checkpoints(self) -> Path:
        """Folder under which the trainer keeps ``<trajectory id>/``."""

    @property
    def distributed(self) -> DistributedContext:
        """The processes that train the run. Only this one, unless the trainer can ``distribute``."""

    def build(self, run: RunSpec, *, shard: Callable[[nn.Module], bool] | None = None) -> BuiltRun:
        """Model, data, optimizer and schedule, after seeding every generator with the run's seed. ``shard`` says
        of the model, before it is on its device, whether its weights are spread over the processes that train
        the run."""

    def dataset(self, run: RunSpec) -> Dataset: ...

    def options(self, kind: str, run: RunSpec) -> dict[str, Any]:
        """All options of a run's plugin of a kind (``"optimizer"``), defaults included, as plain data. RunSpec
        holds only those that differ."""

    def should_stop(self) -> bool:
        """True once the trainer should write what it must keep and return."""

    def result(self, run: RunSpec, status: Status, **measured: Any) -> RunResult:
        """The run's result: what the trainer measured, completed by what the worker knows (attempt, counted
        parameters and FLOPs, device, versions, options in force)."""


class Trainer(ABC):
    """Base class of trainers, which train the runs of one job.

    One instance serves one job at a time, in one process.
    """

    @abstractmethod
    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        """Yield Progress a few times a second and one RunResult for every run of the job.

        May raise: the worker records the exception as the result ``failed`` of every run that has none.
        """
