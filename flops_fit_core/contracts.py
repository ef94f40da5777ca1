"""What the things that plugins build must be able to do.

These are Protocols: nothing has to inherit from them. The conformance kit (``flops_fit_core.testing``)
checks what a type checker cannot. torch is named in annotations only.

Who owns what: only the driver (the process that called ``run``) touches the store, the loggers and the
deletion of checkpoints; only a trainer writes checkpoints; a worker calls :func:`flops_fit_core.work` and
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from flops_fit_core.errors import ConfigError
from flops_fit_core.records import (
    Job,
    LawFit,
    Observation,
    Optimum,
    ParameterCounts,
    Progress,
    RunResult,
    RunSpec,
    Status,
    SweepPlan,
)

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

Batch = Any
"""What a dataset yields: a tensor, or a tuple or dict of tensors, samples along the first dimension."""


# ---------------------------------------------------------------------------- data


class Task(Protocol):
    """What a dataset asks of a model. Owns the loss; holds no data and no parameters."""

    @property
    def unit(self) -> str:
        """What D counts: ``"tokens"`` or ``"samples"``."""

    @property
    def tokens_per_sample(self) -> int:
        """Tokens (predictions) in one sample: the context length of a language task, otherwise 1."""

    def example(self, batch_size: int) -> Batch:
        """A batch of the right shapes and types with arbitrary content, on torch's default device."""

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """The model's outputs for a batch."""

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, int]:
        """Loss in nats summed over the batch (a scalar that carries the gradient) and the number of
        predictions it sums over.

        Raises ValueError, naming both shapes, for outputs that do not fit.
        """

    def metrics(self, outputs: Any, batch: Batch) -> Mapping[str, tuple[float, int]]:
        """Further held-out numbers as (sum, count), such as ``{"accuracy": (37, 64)}``. May be empty."""


class Dataset(Protocol):
    """Training data in a reproducible order, and a held-out part that shares nothing with it."""

    @property
    def task(self) -> Task: ...

    @property
    def fingerprint(self) -> str:
        """Of the content (training and held-out): no path, no time, no seed."""

    @property
    def tokens(self) -> int | None:
        """Different training tokens (samples) there are; None for an endless stream."""

    @property
    def bytes_per_token(self) -> float | None:
        """Of the held-out text, to give bits per byte; None where tokens are not text."""

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Training batches without end, from sample ``start``; the data repeats in a new order when it is
        used up. The same seed gives the same samples at the same positions whatever the batch size."""

    def heldout(self, tokens: int, batch_size: int) -> Iterable[Batch]:
        """The fixed held-out sample of about ``tokens`` tokens: the same windows at every call, for every
        seed and batch size, not overlapping. Less where there is less.

        Raises DataError where there is none.
        """


@runtime_checkable
class SeveralHeldOutSets(Protocol):
    """A dataset that holds out further sets beside its main one, such as text of other domains. Optional.

    A run's result keeps its loss on each of them, and a fit may choose any. Each is as fixed as the main one
    and shares nothing with the training data; sets may share samples with each other. The fingerprint covers
    them all.
    """

    @property
    def heldout_sets(self) -> Sequence[str]:
        """Names of the further sets; the main one has none."""

    def heldout(self, tokens: int, batch_size: int, name: str | None = None) -> Iterable[Batch]:
        """As of ``Dataset``: of the main set where ``name`` is None, otherwise of that further one."""


@runtime_checkable
class LossSurface(Protocol):
    """A dataset whose runs need no training: it computes their loss from a formula."""

    def synthetic_loss(self, params: float, tokens: float, run_id: str) -> float:
        """Held-out loss in nats of a run of N parameters and D tokens, noise included."""


# ---------------------------------------------------------------------------- models


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that an optimizer treats alike."""

    parameters: Sequence[nn.Parameter]
    width: int | None = None
    """Number of channels that feed these matrices and grows with the model; None for embeddings, gains
    and biases. Adam-like optimizers use the learning rate ``lr * base_width / width`` (Yang et al. 2022,
    Tensor Programs V, table 3)."""
    decay: bool = True
    """Whether weight decay applies."""


@dataclass(frozen=True)
class TransformerShape:
    """What a formula needs to know of a decoder-only transformer to count its FLOPs."""

    vocabulary: int
    context: int
    """Tokens of a sequence; every one attends to all."""
    width: int
    """Channels of the residual stream."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads of a block, those of queries; 0 for blocks without attention."""
    key_size: int
    """Channels of a head."""
    hidden: int
    """Hidden units of a block's feed-forward part."""
    tied: bool = False
    """Whether the output head is the input embedding."""
    kv_heads: int | None = None
    """Heads of keys and values where queries share them; None: as many as ``heads``."""
    gated: bool = False
    """Whether the feed-forward part has a third matrix, a gate (Shazeer 2020)."""


@dataclass(frozen=True)
class MeasuredModel:
    """A model built on the meta device (shapes, no memory), as a FLOPs counter sees it.

    The module was built to be counted: a counter may run it, and leaves its parameters as they were.
    """

    module: nn.Module
    task: Task
    parameters: ParameterCounts
    own_flops_per_token: float | None
    """The family's own count of training FLOPs per token; None where it gives none."""
    family: str
    """Qualified name, for messages."""
    shape: TransformerShape | None = None
    """The family's description of itself; None where it gives none."""


@dataclass(frozen=True)
class FlopCount:
    """Training FLOPs (forward and backward) a token, and the conventions behind the numbers."""

    flops_per_token: float
    params: int
    """N by this convention."""
    flops_name: str
    """``6 N D``, ``every matmul and attention, forward and backward``, ..."""
    params_name: str
    """``matmul parameters (without lookup tables)``, ..."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """What ``flops_per_token`` is the sum of, by name, where the counter can tell."""


# ---------------------------------------------------------------------------- runs


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
    adam_like: bool
    """Whether the optimizer's step size is independent of the gradient's scale."""
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
class RunView:
    """What an optimizer and a schedule see of their run."""

    steps: int
    tokens: int
    tokens_per_step: int
    base_width: int | None
    groups: Callable[[nn.Module], Sequence[ParameterGroup]] = field(repr=False)
    """The family's parameter groups; one group of everything where it names none."""

    def lr_scale(self, group: ParameterGroup) -> float:
        """Multiplier of the learning rate for ``group``: 1 unless it has a width and there is a base width."""
        return self.base_width / group.width if self.base_width and group.width else 1.0


class Schedule(Protocol):
    """Multiplier of the peak learning rate at a step, counted from 0 to ``run.steps - 1``."""

    def __call__(self, step: int) -> float: ...


class Device(Protocol):
    """Where a run is computed."""

    @property
    def torch_device(self) -> str:
        """``"cpu"``, ``"cuda:0"``: what ``torch.device`` takes."""

    @property
    def name(self) -> str:
        """For people: ``"NVIDIA H100 80GB HBM3"``."""

    @property
    def precision(self) -> str:
        """What ``auto`` means here: ``"float32"``, or ``"bfloat16"`` where autocast pays."""

    def synchronize(self) -> None:
        """Wait until all submitted work is done."""

    def peak_memory(self) -> int | None:
        """Bytes at the peak since :meth:`release`; None where unknown."""

    def release(self) -> None:
        """Give cached memory back and start a new count of the peak."""

    def peak_flops(self, precision: str) -> float | None:
        """Dense peak in FLOP/s at ``"float32"`` or ``"bfloat16"``, by its maker; None where unknown."""


@dataclass(frozen=True)
class RunParts:
    """Everything that one run is made of, built on its device from its seed."""

    model: nn.Module
    dataset: Dataset
    optimizer: optim.Optimizer
    schedule: Schedule


class Together(Protocol):
    """The processes that train one run, each on its own device, and this one among them.

    All go through the same steps and call these methods in the same order.
    """

    rank: int
    """Of this process, counted from 0. The first one writes checkpoints and gives results; what the others give
    is dropped."""
    size: int
    """1 for a process that trains alone."""

    def agree(self, decision: bool) -> bool:
        """What the first process has decided: for what depends on a clock, a signal or a file."""

    def share(self, batch: Batch, samples: int) -> Batch:
        """The samples of a batch of ``samples`` that are this process's: in order, as even as they can be."""

    def samples(self, samples: int) -> int:
        """How many samples of that batch these are."""

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model as it is to be called, so that backward averages gradients over the processes."""

    def sum(self, value: float) -> float:
        """Over all processes, in float64."""

    def wait(self) -> None:
        """Until all have come here."""

    def seed(self, run_seed: int, step: int) -> None:
        """Draw other random numbers than the other processes from here on. The first one's are those of a process
        that trains alone."""


class TrainContext(Protocol):
    """What a worker gives to a trainer: its surroundings, and its run's plugins already chosen."""

    @property
    def device(self) -> Device: ...

    @property
    def checkpoints(self) -> Path:
        """Folder under which the trainer keeps ``<trajectory id>/``."""

    @property
    def together(self) -> Together:
        """The processes that train the run, of which this is one: one that is alone, unless the trainer can
        ``distribute``."""

    def build(self, run: RunSpec, *, shard: Callable[[nn.Module], bool] | None = None) -> RunParts:
        """Model, data, optimizer and schedule, after seeding every generator with the run's seed. ``shard`` says
        of the model, before it is on its device, whether its weights are spread over the processes that train
        the run."""

    def dataset(self, run: RunSpec) -> Dataset: ...

    def should_stop(self) -> bool:
        """True once the trainer should write what it must keep and return."""

    def result(self, run: RunSpec, status: Status, **measured: Any) -> RunResult:
        """The run's result: what the trainer measured, completed by what the worker knows (attempt, counted
        parameters and FLOPs, device, versions, options in force)."""


class Trainer(Protocol):
    """Trains the runs of one job. One instance serves one job at a time, in one process."""

    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        """Yield Progress a few times a second and one RunResult for every run of the job.

        May raise: the worker records the exception as the result ``failed`` of every run that has none.
        """


# ---------------------------------------------------------------------------- driving


@dataclass(frozen=True)
class JobEnded:
    """Exactly one a submitted job, after all of its results."""

    job: str
    reason: str | None = None
    """None where the worker came to its end; otherwise what happened to it, such as ``killed by SIGKILL``."""


class Executor(Protocol):
    """Runs jobs somewhere. Used by one thread of one driver.

    Every submitted job ends in exactly one :class:`JobEnded`, whatever happens to its worker. Results that
    a worker gave before it died are delivered. Jobs may be submitted while events are being read.
    """

    @property
    def capacity(self) -> int:
        """Jobs that run at the same time; it may change while a cluster grows."""

    def submit(self, job: Job) -> None: ...
    def events(self, timeout: float) -> Iterator[Progress | RunResult | JobEnded]:
        """Events until none has come for ``timeout`` seconds, or until no submitted job is left."""

    def cancel(self, job_id: str) -> None:
        """Stop a job; its JobEnded still comes."""

    def close(self) -> None:
        """Stop everything within seconds and leave no process behind. Idempotent."""


@dataclass(frozen=True)
class ExecutorContext:
    """What an executor needs to start workers."""

    folder: Path
    """The study's folder."""
    plugins: str
    """JSON for :func:`flops_fit_core.work`: which modules and disabled names make the registry."""
    live: Mapping[str, object]
    """Plugins that are Python objects, by name: what ``find_optimal`` was given."""
    slots: Sequence[Mapping[str, str]]
    """Environment variables of each place where one job can run: a core, or a GPU."""

    @cached_property
    def objects(self) -> bytes | None:
        """``live`` in one cloudpickle blob, for workers that this driver starts; never written to disk.

        Raises ConfigError for objects that cannot leave this process.
        """
        import cloudpickle

        if not self.live:
            return None
        try:
            blob: bytes = cloudpickle.dumps(dict(self.live))
        except Exception as error:
            raise ConfigError(
                f"the model, dataset or loss cannot be sent to a worker process ({type(error).__name__}: "
                f'{error}): train in this one, with executor = "local"'
            ) from error
        return blob


@runtime_checkable
class ResultStore(Protocol):
    """Keeps every attempt at every run. The driver is its only user within a process.

    Processes: any number of drivers may have one store open; ``add`` and ``claim`` are atomic between
    them. Threads: one. A store that was opened by a process that was killed opens again, with every
    result whose ``add`` had returned.
    """

    def add(self, result: RunResult) -> None:
        """Keep one attempt. Adding the same (run id, attempt) again replaces it. Returns once it is safe
        from a crash of this process.

        Raises ValueError for a number that is not finite, which JSON would silently drop.
        """

    def get(self, run_id: str) -> RunResult | None:
        """The latest attempt, or None."""

    def results(self) -> list[RunResult]:
        """The latest attempt at every run, in the order in which the runs were first added."""

    def attempts(self, run_id: str) -> list[RunResult]:
        """Every attempt, first to last."""

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        """Take the right to train a run for that long; False while somebody else holds it."""

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        """Hold a claim for that long from now; False where it has been lost."""

    def release(self, run_id: str, owner: str) -> None:
        """Give a claim back. Nothing happens where ``owner`` does not hold it."""

    def close(self) -> None: ...


class Logger(Protocol):
    """Shows or forwards what happens, in the driver. What it raises is reported and never stops a sweep."""

    def started(self, plan: SweepPlan) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def finished(self, result: RunResult) -> None: ...
    def close(self) -> None: ...


# ---------------------------------------------------------------------------- fitting


class Fitter(Protocol):
    """Fits a law to trained models and says what it predicts."""

    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Raises FitError, saying what is missing, where no law can be fitted."""

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        """N_opt, D_opt and L_opt for a budget of ``flops``, with intervals from the fit's draws."""
