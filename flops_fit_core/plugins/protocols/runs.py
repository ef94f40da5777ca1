"""Devices and trainers, and the inputs and outputs of recipes, optimizers, schedules and trainers."""

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
    """A run for which a recipe chooses hyperparameters."""

    params: int
    """N by the plan's FLOPs counter."""
    tokens: int
    """D before it is rounded to whole steps."""
    width: int | None
    """Width of the model; None if its family has no width."""
    task: Task
    width_scaling: WidthScaling
    """Declared by the optimizer's spec. Values for AdamW apply unless it is ``"none"``."""
    lr_relative_to_adamw: float = field(kw_only=True, default=1.0)
    """A good learning rate for the optimizer, divided by a good learning rate for AdamW."""
    flops: float = field(kw_only=True)
    """C: training FLOPs of the run by the plan's counter, at ``tokens``."""
    parameters: ParameterCounts = field(kw_only=True)
    """The model's parameters by kind, for a law with another N than ``params``."""
    lr: float | None = field(kw_only=True, default=None)
    """Peak learning rate; None if the user did not set it."""
    batch_size: int | None = field(kw_only=True, default=None)
    """Samples per step; None if the user did not set them."""
    trunk: bool = field(kw_only=True, default=False)
    """Whether runs with several D share the hyperparameters, some with far fewer and some with far more tokens
    than ``tokens``."""


@dataclass(frozen=True)
class RunInfo:
    """A run, as input of its optimizer and its schedule."""

    steps: int
    tokens: int
    tokens_per_step: int
    base_width: int | None
    groups: Callable[[nn.Module], Sequence[ParameterGroup]] = field(repr=False)
    """The family's parameter groups. A single group with all parameters if the family declares none."""
    width_scaling: WidthScaling = field(kw_only=True)
    """Declared by the spec of the run's optimizer."""

    def param_groups(self, model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """The model's parameters as torch's optimizers accept them, in the order of the family's groups.

        Each group has ``params``, ``lr`` and ``weight_decay`` (0 for parameters that must not decay). With
        ``width_scaling="adam"``, a group's learning rate is ``lr * lr_scale(group)`` and its decay is divided by
        the same factor. With ``"none"``, every group has ``lr`` and ``weight_decay`` unchanged.

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
"""Function of the step, counted from 0 to ``run.steps - 1``, that returns the multiplier of the peak learning
rate."""


class Device:
    """Base class of devices, on which runs are trained.

    Set ``torch_device`` and ``name`` in the class or in ``__init__``. The default methods suit a device without a
    queue and without separate memory, such as a CPU.
    """

    torch_device: str
    """Argument of ``torch.device``: ``"cpu"``, ``"cuda:0"``."""
    name: str
    """Name to display: ``"NVIDIA H100 80GB HBM3"``."""
    precision: str = "float32"
    """Precision for ``auto``: ``"float32"``, or ``"bfloat16"`` if autocast is faster."""

    def synchronize(self) -> None:
        """Wait until all submitted work is done."""

    def peak_memory(self) -> int | None:
        """Bytes at the peak since :meth:`release`; None if unknown."""
        return None

    def release(self) -> None:
        """Release cached memory and reset the peak."""

    def peak_flops(self, precision: str) -> float | None:
        """The manufacturer's dense peak in FLOP/s at ``"float32"`` or ``"bfloat16"``; None if unknown."""
        return None


@dataclass(frozen=True)
class BuiltRun:
    """The model, dataset, optimizer and schedule of a run, built on its device from its seed."""

    model: nn.Module
    dataset: Dataset
    optimizer: optim.Optimizer
    schedule: Schedule


class DistributedContext(Protocol):
    """The processes that train one run, each on a separate device.

    All processes take the same steps and call these methods in the same order. Decisions that depend on a clock, a
    signal or a file must use :meth:`broadcast`.
    """

    rank: int
    """Number of this process, counted from 0. The first process writes checkpoints and yields results. Results of
    other processes are dropped."""
    size: int
    """Number of processes; 1 for a process that trains alone."""

    def broadcast(self, decision: bool) -> bool:
        """The decision of the first process."""

    def all_reduce_sum(self, value: float) -> float:
        """The sum over all processes, in float64."""

    def barrier(self) -> None:
        """Wait until every process has called this."""

    def local_batch(self, batch: Batch, samples: int) -> Batch:
        """The part of this process in a batch of ``samples``: contiguous, in order, parts as equal as possible."""

    def local_samples(self, samples: int) -> int:
        """Number of samples that :meth:`local_batch` returns."""

    def wrap_model(self, model: nn.Module) -> nn.Module:
        """The model to call in training. Its backward pass averages gradients over the processes."""

    def seed(self, run_seed: int, step: int) -> None:
        """Seed random generators differently in every process. The generators of the first process keep their
        state, which equals that of training in a single process."""


class TrainContext(Protocol):
    """A worker's device, checkpoints and processes, and the plugins of its runs."""

    @property
    def device(self) -> Device: ...

    @property
    def checkpoints(self) -> Path:
        """Folder in which the trainer writes ``<trajectory id>/``."""

    @property
    def distributed(self) -> DistributedContext:
        """The processes that train the run: a single process unless the trainer can ``distribute``."""

    def build(self, run: RunSpec, *, shard: Callable[[nn.Module], bool] | None = None) -> BuiltRun:
        """Seed every generator with the run's seed and build model, data, optimizer and schedule. ``shard``
        receives the model before it is on its device and returns whether its weights are distributed over the
        processes that train the run."""

    def dataset(self, run: RunSpec) -> Dataset: ...

    def options(self, kind: str, run: RunSpec) -> dict[str, Any]:
        """All options of a run's plugin of a kind (``"optimizer"``) as plain data, defaults included. A RunSpec
        holds only options that differ from their default."""

    def should_stop(self) -> bool:
        """True when the trainer should write a checkpoint and return."""

    def result(self, run: RunSpec, status: Status, **measured: Any) -> RunResult:
        """The run's result: the trainer's measurements and the worker's data (attempt, counted parameters and
        FLOPs, device, versions, effective options)."""


class Trainer(ABC):
    """Base class of trainers, which train the runs of one job.

    One instance serves one job at a time, in one process.
    """

    @abstractmethod
    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        """Yield Progress a few times per second and one RunResult for every run of the job.

        May raise. The worker then records the result ``failed``, with the exception, for every run without a
        result.
        """
